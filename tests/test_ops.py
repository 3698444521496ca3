"""What operators are given holds together: alerts, runbook, dashboard, unit and compose file speak of what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache

import pytest
from repository import ROOT

from ops.reference import described
from replicator.config import VARIABLES

OPS = ROOT / "ops"
RUNBOOK = (OPS / "runbook.md").read_text()
ALERTS = (OPS / "prometheus" / "alerts.yml").read_text()
ALERT_NAMES = re.findall(r"- alert: (\w+)", ALERTS)
PROMTOOL = shutil.which("promtool")
ANALYZE = shutil.which("systemd-analyze")
ENGINE_METRICS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def headings(part: str) -> list[str]:
    section = RUNBOOK.partition(f"\n## {part}\n")[2].partition("\n## ")[0]
    return re.findall(r"^### (\w+)$", section, re.MULTILINE)


@cache
def metrics() -> set[str]:
    """Every name Prometheus knows of us, a histogram's parts too."""
    names = set(ENGINE_METRICS)
    for name, kind, *_ in described():
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def named_metrics(text: str) -> set[str]:
    return set(re.findall(r"\b(?:replicator|process)_[a-z_]+\b", text))


# ── the runbook ──


def test_every_alert_has_a_heading_and_no_heading_is_without_an_alert() -> None:
    assert headings("Alerts") == ALERT_NAMES


def test_links_within_the_runbook_lead_somewhere() -> None:
    known = {heading.lower() for heading in re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)}
    links = re.findall(r"\]\(#([\w-]+)\)", RUNBOOK)
    assert links and [link for link in links if link not in known] == []


def test_every_entry_says_what_to_look_at_or_do() -> None:
    for name in headings("Alerts") + headings("Reasons"):
        text = RUNBOOK.partition(f"\n### {name}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
        assert "**Do:**" in text or "**Look and do:**" in text or re.search(r"(See|As for) \[", text), name


# ── Prometheus ──


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")
@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_accepts_the_rules_and_each_alert_fires(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [str(PROMTOOL), *arguments], cwd=OPS / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_made_to_fire_and_to_stay_silent() -> None:
    cases = (OPS / "prometheus" / "alerts_test.yml").read_text()
    fired = re.findall(r"alertname: (\w+)\n\s+exp_alerts:", cases)
    silent = re.findall(r"\{eval_time: 50m, alertname: (\w+)\}", cases)
    assert sorted(fired) == sorted(silent) == sorted(ALERT_NAMES)


def test_alerts_watch_metrics_that_exist() -> None:
    named = named_metrics("\n".join(re.findall(r"expr: (.*(?:\n {10}.*)*)", ALERTS)))
    assert len(named) > 15 and named - metrics() == set()


def test_alerts_point_to_their_own_heading() -> None:
    assert re.findall(r"runbook_url: \"ops/runbook\.md#(\w+)\"", ALERTS) == [name.lower() for name in ALERT_NAMES]


# ── Grafana ──


def test_the_dashboard_shows_metrics_that_exist_by_instance() -> None:
    board = json.loads((OPS / "grafana" / "replicator.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    named = named_metrics("\n".join(expressions))
    assert len(named) > 25 and named - metrics() == set()
    assert all('{instance=~"$instance"}' in expression for expression in expressions)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")
def test_the_dashboards_expressions_are_promql(tmp_path: pytest.TempPathFactory) -> None:
    board = json.loads((OPS / "grafana" / "replicator.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    rules = [
        {"record": f"panel:{n}", "expr": e.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for n, e in enumerate(expressions)
    ]
    path = tmp_path / "rules.json"  # type: ignore[operator]
    path.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    done = subprocess.run([str(PROMTOOL), "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ── systemd, Docker ──


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit_and_finds_it_hardened(tmp_path: pytest.TempPathFactory) -> None:
    text = (OPS / "systemd" / "replicator.service").read_text()
    unit = tmp_path / "replicator.service"  # type: ignore[operator]
    unit.write_text(text.replace("/opt/replicator/bin/replicator", "/bin/true"))
    verified = subprocess.run([str(ANALYZE), "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "replicator.service" not in verified.stderr, verified.stderr
    scored = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stdout[-400:] + scored.stderr


def test_the_compose_file_sets_only_variables_that_are_read() -> None:
    text = (OPS / "docker" / "compose.yaml").read_text()
    service = text.partition("\n  replicator:\n")[2].partition("\n  prometheus:\n")[0]
    named = set(re.findall(r"^      ([A-Z_]+):", service, re.MULTILINE))
    known = {variable.name for variable in VARIABLES}
    assert len(named) > 3 and {name.removesuffix("_FILE") for name in named} - known == set()
    assert "../prometheus/alerts.yml" in text and "../grafana/replicator.json" in text
    assert (OPS / "docker" / "prometheus.yml").exists()


def test_the_image_runs_as_nobody_in_particular_and_is_asked_how_it_is() -> None:
    text = (OPS / "docker" / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "HEALTHCHECK" in text and "/livez" in text
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "config/secrets.toml", ".env", "data"} <= set(ignored)

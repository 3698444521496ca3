"""A running service as a real Prometheus and an OTLP collector see it: values equal status, spans tell each batch."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import urllib3
from collector import Collector, attributes
from prometheus_client.parser import text_string_to_metric_families
from replicator_process import Replicator, free_port, until

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.metrics import OBSERVED, RECORDED
from replicator.tracing import LINKS_MAX

PROMETHEUS = shutil.which("prometheus")
TRACE = "0af7651916cd43dd8448eb211c80319c"
ROWS = 60
TABLE = '[[tables]]\nname = "trades"\nkey = ["id"]\n[tables.columns]\nid = "VARCHAR"\nsecret = "VARCHAR"\n'


def producer_span(n: int) -> str:
    return f"{n + 1:016x}"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


@pytest.fixture(scope="module")
def service(
    _valkey: Valkey, _clickhouse: ClickHouse, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicator]:
    """Has logged and delivered some changes that producers traced, one repeated and one that cannot be decoded."""
    _valkey.start()
    _clickhouse.start()
    environment = {
        "REDIS_URL": _valkey.url,
        "CLICKHOUSE_ENDPOINT": _clickhouse.endpoint,
        "CLICKHOUSE_USER": _clickhouse.user,
        "CLICKHOUSE_PASSWORD": _clickhouse.password,
    }
    _clickhouse.execute("create database if not exists test_export")
    sections = f'[serve]\nport = 0\n[telemetry]\notlp_endpoint = "{collector.endpoint}"\n{TABLE}'
    with (
        redis.Redis.from_url(_valkey.url) as client,
        Replicator(
            directory=tmp_path_factory.mktemp("export"),
            environment=environment,
            database="test_export",
            sections=sections,
        ) as replicator,
    ):
        client.flushall()
        replicator.start()
        pipe = client.pipeline()  # one MULTI: capture reads them as one batch
        for n in range(ROWS):
            row = json.dumps({"id": f"T{n}", "secret": "marked-value"})
            pipe.xadd("trades", {"data": row, "traceparent": f"00-{TRACE}-{producer_span(n)}-01", "id": f"i{n}"})
        pipe.xadd("trades", {"data": row, "traceparent": "no trace at all", "id": f"i{ROWS - 1}"})
        pipe.xadd("trades", {"data": "{", "traceparent": f"00-{TRACE}-{producer_span(0)}-01"})
        pipe.execute()
        replicator.until_status(lambda r: r["sink"]["confirmed_offset"] == ROWS, "ClickHouse confirms them")
        yield replicator
    _clickhouse.start().execute("drop database test_export sync")


@pytest.fixture(scope="module")
def exported(service: Replicator, collector: Collector) -> Collector:
    """What the collector holds once the service has stopped in order. Comes last: nothing runs after it."""
    assert service.stop() == 0, service.log_text
    return collector


# ── Prometheus ──


def families(service: Replicator) -> dict[str, Any]:
    text = service.http("GET", "/metrics", token=None).data.decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_names_have_one_prefix_a_unit_and_few_labels(service: Replicator) -> None:
    found = families(service)
    ours = {name for name in found if not name.startswith("process_")}
    assert {name for name in ours if not name.startswith("replicator_")} == {
        "messaging_client_consumed_messages",
        "messaging_process_duration_seconds",
    }
    assert all(found[name].documentation for name in ours)
    labels = {label for name in ours for sample in found[name].samples for label in sample.labels}
    declared = {label.replace(".", "_") for each in (*OBSERVED, *RECORDED) for label in each.labels}
    assert labels <= declared | {"le"}
    loops = {sample.labels["loop"] for sample in found["replicator_loop_running"].samples}
    assert {"capture", "deliver"} <= loops


def test_what_is_counted_is_what_happened(service: Replicator) -> None:
    def value(name: str, **labels: str) -> float:
        samples = [sample for family in families(service).values() for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    until(lambda: value("replicator_rows_synced_total") == ROWS, "the report is renewed")
    assert value("replicator_events_ingested_total") == ROWS + 2
    assert value("replicator_events_appended_total") == ROWS
    assert value("replicator_events_duplicate_total") == 1
    assert value("replicator_events_rejected_total") == 1
    assert value("replicator_rejected_entries_open") == 1
    assert value("replicator_status_reason", kind="rejected_entries") == 1
    assert value("replicator_status_reason", kind="gaps") == 0
    assert value("replicator_insert_rows_sum", table="trades") == ROWS
    assert value("replicator_insert_duration_seconds_count", table="trades", outcome="delivered") >= 1
    assert value("replicator_schema_changes", table="trades") == 0
    consumed = {"messaging_system": "redis", "messaging_destination_name": "trades"}
    assert value("messaging_client_consumed_messages_total", **consumed) == ROWS + 2
    assert value("messaging_process_duration_seconds_count") >= 1


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed: apt-get install prometheus")
def test_a_real_prometheus_scrapes_it_and_sees_what_status_says(service: Replicator, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    target = service.url.removeprefix("http://")
    (tmp_path / "p.yml").write_text(
        f"global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: replicator\n"
        f"  static_configs: [{{targets: ['{target}']}}]\n"
    )
    arguments = ["--config.file=p.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen([str(PROMETHEUS), *arguments], cwd=tmp_path, stdout=log, stderr=log) as process,
        urllib3.PoolManager(retries=False) as pool,
    ):
        try:

            def ask(path: str) -> Any:
                try:
                    return pool.request("GET", f"http://{address}/api/v1/{path}", timeout=10).json()["data"]
                except (urllib3.exceptions.HTTPError, ValueError, KeyError):
                    return None  # not up yet

            def value(metric: str) -> float | None:
                result = (ask(f"query?query={metric}") or {}).get("result")
                return float(result[0]["value"][1]) if result else None

            until(lambda: any(t["health"] == "up" for t in (ask("targets") or {}).get("activeTargets", [])), "it is up")
            status = service.status()
            for metric, expected in {
                "replicator_log_head_offset": status["log"]["head_offset"],
                "replicator_checkpoint_offset": status["sink"]["checkpoint_offset"],
                "replicator_sink_confirmed_offset": status["sink"]["confirmed_offset"],
                "replicator_lag_events": status["sink"]["lag_changes"],
                "replicator_rejected_entries_open": status["rejected_entries"]["open"],
                "replicator_status": {"ok": 0, "degraded": 1, "failed": 2}[status["state"]],
            }.items():
                until(lambda m=metric, e=expected: value(m) == e, f"{metric} is {expected}")
        finally:
            process.terminate()


# ── OTLP ──


def test_metrics_are_exported_over_otlp(exported: Collector) -> None:
    def last(name: str) -> float:
        points = exported.metrics[name]
        kind = points.WhichOneof("data")
        (point,) = getattr(points, kind).data_points
        return point.as_double or point.as_int

    assert last("replicator.log.head_offset") == ROWS
    assert last("replicator.rows_synced") == ROWS
    assert exported.metrics["replicator.lag.seconds"].unit == "s"
    assert all(r["service.name"] == "replicator" and r["service.instance.id"] for r in exported.resources)
    assert all(r["replicator.pipeline"] == "main" for r in exported.resources)


def test_a_captured_batch_is_one_span_linked_to_its_producers(exported: Collector) -> None:
    (span,) = [s for s in exported.named("capture batch") if attributes(s)["replicator.changes"] == ROWS]
    found = attributes(span)
    assert found["messaging.destination.name"] == "trades"
    assert found["messaging.batch.message_count"] == ROWS + 2
    assert (found["replicator.first_offset"], found["replicator.last_offset"]) == (1, ROWS)
    assert [link.span_id.hex() for link in span.links] == [producer_span(n) for n in range(LINKS_MAX)]
    assert {link.trace_id.hex() for link in span.links} == {TRACE}
    assert [child.name for child in exported.children(span)] == ["append", "publish"]


def test_a_delivered_batch_is_one_span_from_read_to_checkpoint(exported: Collector) -> None:
    batches = exported.named("deliver batch")
    ranges = sorted(
        (attributes(s)["replicator.first_offset"], attributes(s)["replicator.last_offset"]) for s in batches
    )
    assert ranges[0][0] == 1 and ranges[-1][1] == ROWS
    (capture,) = [s for s in exported.named("capture batch") if attributes(s)["replicator.changes"] == ROWS]
    for span in batches:
        assert attributes(span)["replicator.table"] == "trades"
        children = exported.children(span)
        assert [child.name for child in children] == ["read", "freeze", "send", "ledger", "checkpoint"]
        send = attributes(children[2])
        assert (send["replicator.outcome"], send["replicator.attempt"]) == ("delivered", 1)
        assert send["clickhouse.query_id"]
        assert span.start_time_unix_nano <= children[0].start_time_unix_nano
        assert span.end_time_unix_nano >= children[-1].end_time_unix_nano
        linked = [link.span_id for link in span.links]
        assert linked[0] == capture.span_id
        assert {link.trace_id.hex() for link in span.links[1:]} == {TRACE}
        assert len(linked) == LINKS_MAX


def test_log_lines_about_a_batch_carry_its_trace(exported: Collector, service: Replicator) -> None:
    spans = {span.span_id.hex(): span for span in exported.spans}
    for event, name in (("batch_delivered", "deliver batch"), ("changes_appended", "capture batch")):
        for line in service.events(event):
            span = spans[line["span_id"]]
            assert (span.name, span.trace_id.hex()) == (name, line["trace_id"])
    assert service.events("batch_delivered")


def test_no_value_of_a_row_leaves_the_process(exported: Collector, service: Replicator) -> None:
    assert exported.spans and "marked-value" not in str(exported.spans) + str(exported.metrics) + service.log_text

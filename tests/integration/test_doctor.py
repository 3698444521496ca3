"""The support bundle has what helps and nothing that is secret: marked secrets and marked values are looked for in it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import redis
from replicator_process import Replicator

from replicator.embedded.clickhouse import ClickHouse

MARK = "Marqqed"
TABLE = """
[[tables]]
name = "trades"
key = ["id"]
on_unknown_field = "reject"
[tables.columns]
id = "VARCHAR"
price = "DECIMAL(9,2)"
"""


def bundle(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            Path(member.name).name: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive.getmembers()
        }


def test_a_bundle_of_a_service_in_trouble_tells_what_and_no_value(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    replicator.configure(streams='["trades"]', sections=f"[serve]\nport = 0\n{TABLE}", level="DEBUG")
    replicator.write(
        "duckdb_rust_config.toml", (replicator.config_dir / "duckdb_rust_config.toml").read_text().replace(
            "[logging]\n", '[logging]\nlog_path = "data/replicator.log"\n')
    )  # fmt: skip
    replicator.write("secrets.toml", f'[serve]\nread_token = "{MARK}-read-token-0123456789"\n')
    replicator.start()
    source.xadd("trades", {"data": json.dumps({"id": f"{MARK}1", "price": "1.25"})})
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 1, "the first is delivered")
    clickhouse_server.execute(f"alter table {clickhouse_database}.trades_log add constraint c check id != '{MARK}2'")
    for row in ({"id": f"{MARK}2", "price": "2.25"}, {"id": f"{MARK}3", "price": MARK}, {"id": f"{MARK}4", MARK: 1}):
        source.xadd("trades", {"data": json.dumps(row)})
    source.xadd("trades", {"data": "{" + MARK})
    replicator.until_status(
        lambda r: r["failed_syncs"]["open"] and r["rejected_entries"]["open"] == 3, "one is parked, three are rejected"
    )
    replicator.http("POST", "/api/v1/failed/discard", body={"all": True, "reason": f"it is {MARK}"})
    path = replicator.directory / "running.tar.gz"
    answered = replicator.command("doctor", "--output", str(path), "--json")
    assert answered.code == 0, answered.err
    assert answered.json["missing"] == {}
    assert path.stat().st_mode & 0o777 == 0o600
    parts = bundle(path)
    _holds_what_helps(parts)
    assert [name for name, text in parts.items() if MARK.lower() in text.lower()] == []
    admin = replicator.database_path.with_name("replicator.duckdb.admin_token").read_text().strip()
    assert admin not in "".join(parts.values())
    assert "s3cret" not in "".join(parts.values()), "ClickHouse's password"

    replicator.stop()
    stopped = replicator.directory / "stopped.tar.gz"
    assert replicator.command("doctor", "--output", str(stopped)).code == 0
    parts = bundle(stopped)
    assert json.loads(parts["status.json"])["reason_kinds"][0] == "not_running"
    assert MARK.lower() not in "".join(parts.values()).lower()


def _holds_what_helps(parts: dict[str, str]) -> None:
    owner, log = json.loads(parts["owner.json"]), parts["log.ndjson"]
    assert owner["records"]["failed"][0]["error_code"] == "469"
    assert owner["records"]["failed"][0]["table"] == "trades"
    assert len(owner["records"]["rejected"]) == 3
    assert owner["records"]["actions"][0]["action"] == "failed discard"
    assert "change_log" in owner["duckdb"]["schema"] and owner["duckdb"]["migrations"]
    assert any("deliver" in name for name in owner["threads"])
    assert "ReplacingMergeTree" in json.loads(parts["clickhouse.json"])["trades_log"]["create"]
    assert json.loads(parts["status.json"])["sink"]["checkpoint_offset"] == 2
    assert {finding["part"] for finding in json.loads(parts["check.json"])} == {"Redis", "ClickHouse", "DuckDB"}
    assert "replicator_log_head_offset 2" in parts["metrics.txt"]
    assert json.loads(parts["about.json"])["packages"]["duckdb"]
    assert {json.loads(line)["event"] for line in log.splitlines()} >= {"batch_delivered", "batch_failed"}
    secrets = [s for s in json.loads(parts["settings.json"]) if s["key"] in ("clickhouse_password", "read_token")]
    assert secrets and all(s["value"] == "(hidden)" for s in secrets)


def test_a_bundle_is_made_where_nothing_works(replicator: Replicator) -> None:
    replicator.environment |= {"REDIS_URL": "redis://127.0.0.1:9", "CLICKHOUSE_ENDPOINT": "http://127.0.0.1:9"}
    answered = replicator.command("doctor", "--json")
    assert answered.code == 0, answered.err
    assert {"owner.json", "clickhouse.json", "log.ndjson"} <= answered.json["missing"].keys()
    (path,) = replicator.directory.glob("replicator-doctor-main-*.tar.gz")
    again = replicator.command("doctor", "--output", str(path))
    assert (again.code, "is there already" in again.err) == (2, True), "it overwrites nothing"
    findings = {f["part"]: f for f in json.loads(bundle(path)["check.json"])}
    assert not findings["Redis"]["ok"] and "refused" in findings["Redis"]["text"]

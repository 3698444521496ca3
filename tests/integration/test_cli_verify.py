"""``replicator verify`` with a running service and without, on the schedule, and what `status` remembers of it."""

from __future__ import annotations

import redis
from replicator_process import Replicator, add, until

from replicator.embedded.clickhouse import ClickHouse


def filled(replicator: Replicator, source: redis.Redis) -> Replicator:
    """A running service that has delivered a hundred changes."""
    replicator.start()
    add(source, 1, 100)
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 100, "a hundred changes delivered")
    return replicator


def lose(server: ClickHouse, database: str) -> None:
    server.execute(f"delete from {database}.change_log where log_offset in (7, 8, 42)")


def test_verify_finds_says_and_mends_beside_the_service(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    filled(replicator, source)
    assert "never yet: `replicator verify`" in replicator.command("status").out
    equal = replicator.command("verify")
    assert (equal.code, "log and sink agree: 100 rows" in equal.out) == (0, True)
    lose(clickhouse_server, clickhouse_database)

    found = replicator.command("verify", "--json")
    assert found.code == 4
    [table] = [t for t in found.json["tables"] if t["table"] == "change_log"]
    assert table["faults"] == [{"side": "sink", "kind": "missing", "rows": 3, "ranges": [[7, 8], [42, 42]]}]
    shown = replicator.command("status", "--json").json
    assert shown["verify"]["mismatches"] == 3 and shown["verify"]["age_seconds"] < 60
    assert shown["state"] == "failed"
    told = replicator.command("status").out
    assert "verify found 3 differences between log and ClickHouse" in told
    assert "3 differences found" in told and "ago; they agreed last" in told

    dry = replicator.command("verify", "--repair", "--dry-run")
    assert (dry.code, "3 rows would be sent again" in dry.out) == (4, True)
    assert clickhouse_server.execute(f"select count() from {clickhouse_database}.change_log").strip() == "97"

    refused = replicator.command("verify", "--repair")
    assert (refused.code, "add --yes" in refused.err) == (2, True)
    mended = replicator.command("verify", "--repair", "--yes", "--json")
    assert (mended.code, mended.json["sent_rows"], mended.json["mismatches"]) == (0, 3, 0)
    assert replicator.command("verify").code == 0
    shown = replicator.command("status", "--json").json
    assert (shown["verify"]["mismatches"], shown["state"]) == (0, "ok")
    assert "log and ClickHouse agreed" in replicator.command("status").out
    assert replicator.command("actions", "--json").json[0]["action"] == "repair"


def test_verify_without_a_service_opens_the_file(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    filled(replicator, source)
    replicator.kill()
    lose(clickhouse_server, clickhouse_database)
    found = replicator.command("verify", "--from", "8", "--json")
    assert (found.code, found.json["mismatches"]) == (4, 2)
    assert "current rows (T)" in found.json["notes"][0]
    shown = replicator.command("verify", "--from", "42", "--to", "42").out
    assert "1 row missing" in shown and "note: only some offsets" in shown and "1 mismatch:" in shown
    assert "note: change_log: batches are compared whole" in shown
    assert replicator.command("status", "--json").json["verify"]["last_at"] is None
    assert replicator.command("verify").code == 4
    assert replicator.command("status", "--json").json["verify"]["mismatches"] == 3


def test_verify_refuses_what_makes_no_sense(replicator: Replicator) -> None:
    assert replicator.command("verify").code == 3
    assert replicator.command("verify", "--from", "5", "--to", "4").code == 2
    replicator.start()
    unknown = replicator.command("verify", "--table", "nowhere")
    assert (unknown.code, "there is no table nowhere" in unknown.err) == (2, True)


def test_verify_on_its_schedule_is_seen_in_status(replicator: Replicator, source: redis.Redis) -> None:
    replicator.configure(sections="[serve]\nport = 0\n[verify]\ninterval_sec = 1\nwatermark_age_sec = 0")
    filled(replicator, source)

    def verified() -> bool:
        last = replicator.command("status", "--json").json["verify"]
        return last["last_at"] is not None and last["mismatches"] == 0

    until(verified, "a comparison on schedule")

"""``replicator replay`` with a running service and without, and one that was killed in the middle."""

from __future__ import annotations

import json

import redis
from replicator_process import Replicator, add, until

from replicator.embedded.clickhouse import ClickHouse


def test_a_kill_in_the_middle_is_resumed_by_command_and_the_service_shows_how_far_it_is(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    def rows() -> int:
        return int(clickhouse_server.execute(f"select uniqExact(log_offset) from {clickhouse_database}.change_log"))

    assert replicator.command("replay").code == 2
    replicator.environment["REPLICATOR_FAILPOINTS"] = "replay.after_send=kill"
    replicator.start()
    add(source, 1, 100)
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 100, "a hundred changes delivered")
    dry = replicator.command("replay", "--from", "1", "--dry-run", "--json")
    assert (dry.code, dry.json["safe"], dry.json["rows"]) == (0, True, 100)
    clickhouse_server.execute(f"alter table {clickhouse_database}.change_log add column mine String")
    unsafe = replicator.command("replay", "--from", "1", "--dry-run")
    assert (unsafe.code, "column 'mine' (String) is not ours" in unsafe.out) == (4, True)
    clickhouse_server.execute(f"alter table {clickhouse_database}.change_log drop column mine")
    clickhouse_server.execute(f"delete from {clickhouse_database}.change_log where 1")
    cut = replicator.command("replay", "--from", "1")
    assert cut.code == 3
    assert "while it was at the replay" in cut.err and "`replicator replay --resume`" in cut.err
    replicator.wait()
    del replicator.environment["REPLICATOR_FAILPOINTS"]
    until(lambda: rows() == 100, "the insert before the kill has ended")
    resumed = replicator.command("replay", "--resume", "--json")
    assert (resumed.code, resumed.json["sent_rows"]) == (0, 100)
    assert replicator.command("verify").code == 0
    started = json.loads(replicator.start().http("POST", "/api/v1/replay", body={"first": "1"}).data)
    until(
        lambda: replicator.http("GET", f"/api/v1/replay/{started['id']}").json()["state"] == "done",
        "the service says that it is done",
    )
    assert replicator.http("POST", "/api/v1/replay", token="read", body={"first": "1"}).status == 403
    assert replicator.command("replay", "--from", "7").out.startswith("table")

"""``replicator state`` and ``replicator trace``, with a running service and without."""

from __future__ import annotations

import json

import redis
from replicator_process import Replicator

from replicator.embedded.clickhouse import ClickHouse

TABLES = """
[serve]
port = 0
[[tables]]
name = "trades"
key = ["trade_id"]
[tables.columns]
trade_id = "VARCHAR"
price = "DECIMAL(18,6)"
quantity = "BIGINT"
"""


def filled(replicator: Replicator, source: redis.Redis) -> Replicator:
    """Three changes of T1, one of T2, then T1 is deleted: offsets 1 to 5."""
    replicator.configure(sections=TABLES)
    replicator.start()
    for key, price in (("T1", "1.50"), ("T2", "7"), ("T1", "2.25"), ("T1", "3")):
        trade = {"trade_id": key, "price": price, "quantity": 9007199254740993}
        source.xadd("trades", {"id": f"id-{key}-{price}", "data": json.dumps(trade)})
    source.xadd("trades", {"op": "d", "key": "T1"})
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 5, "all is delivered")
    return replicator


def prices(replicator: Replicator, *arguments: str) -> dict[str, str]:
    found = replicator.command("state", "trades", "--json", *arguments)
    assert found.code == 0, found.err
    columns = found.json["columns"]
    return {row[columns.index("trade_id")]: row[columns.index("price")] for row in found.json["rows"]}


def test_a_table_is_shown_as_it_was_beside_the_service_and_without(replicator: Replicator, source: redis.Redis) -> None:
    filled(replicator, source)
    for _ in ("beside the service", "without"):
        assert prices(replicator) == {"T2": "7.000000"}
        assert prices(replicator, "--as-of", "3") == {"T1": "2.250000", "T2": "7.000000"}
        assert prices(replicator, "--as-of", "4", "--key", "T1") == {"T1": "3.000000"}
        assert prices(replicator, "--as-of", "2000-01-01T00:00:00Z") == {}
        [row] = replicator.command("state", "trades", "--json", "--key", "T2").json["rows"]
        assert "9007199254740993" in row
        replicator.kill()


def test_state_refuses_what_it_cannot_know(replicator: Replicator, source: redis.Redis) -> None:
    filled(replicator, source)
    for arguments, said in ((("nowhere",), "no table nowhere"), (("trades", "--as-of", "99"), "not logged yet"),
                            (("trades", "--as-of", "soon"), "neither an offset")):  # fmt: skip
        refused = replicator.command("state", *arguments)
        assert (refused.code, said in refused.err) == (2, True), refused.err


def test_trace_tells_the_whole_way_of_a_change(replicator: Replicator, source: redis.Redis) -> None:
    filled(replicator, source)
    [change] = replicator.command("trace", "id-T1-2.25", "--json").json["changes"]
    assert (change["offset"], change["table"], change["op"], change["key"]) == (3, "trades", "u", "T1")
    assert change["batch"]["first_offset"] <= 3 <= change["batch"]["last_offset"]
    assert change["batch"]["delivered_at"] >= change["batch"]["frozen_at"] >= change["logged_at"]
    assert len(change["sink"]["sends"]) == 1
    assert change["sink"]["current"] is False
    assert change["sink"]["ledger"]["query_id"].startswith("replicator:main:trades_log:")
    by_key = replicator.command("trace", "T1", "--json").json["changes"]
    assert [each["offset"] for each in by_key] == [5, 4, 3, 1]
    shown = replicator.command("trace", "2")
    assert (shown.code, "its key's current row" in shown.out) == (0, True)
    by_entry = replicator.command("trace", change["entry_id"], "--json").json["changes"]
    assert [each["offset"] for each in by_entry] == [3]
    assert replicator.command("trace", "nothing-of-that-name").code == 2


def test_trace_names_every_attempt_with_its_time_and_its_query_and_replays_too(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse
) -> None:
    filled(replicator, source)
    assert replicator.command("replay", "--from", "3").code == 0
    assert replicator.command("rebuild", "trades", "--yes").code == 0
    clickhouse_server.execute("system flush logs")
    found = replicator.command("trace", "3", "--json").json["changes"][0]
    attempts = found["sink"]["attempts"]
    assert found["batch"]["attempt"] == 1
    assert [(each["attempt"], each["outcome"]) for each in attempts] == [(1, "done")] * 3
    assert attempts[0]["query_id"] == found["sink"]["ledger"]["query_id"] != attempts[1]["query_id"]
    assert attempts[2]["send"] in found["sink"]["sends"], "what the rebuild sent"
    shown = replicator.command("trace", "3").out
    assert all(each["query_id"] in shown and each["at"] in shown for each in attempts)
    assert "delivered" in shown and "attempt 1" in shown


def test_trace_shows_a_key_with_many_changes_one_line_each(replicator: Replicator, source: redis.Redis) -> None:
    filled(replicator, source)
    lines = replicator.command("trace", "T1").out.splitlines()
    assert len(lines) <= 4 + 3, "a header, and four changes"
    assert sum("delivered" in line for line in lines[2:]) == 4
    assert sum("current" in line for line in lines) == 0, "T1 is deleted"


def test_trace_never_says_that_what_is_parked_was_delivered(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    filled(replicator, source)
    table = f"{clickhouse_database}.trades_log"
    clickhouse_server.execute(f"alter table {table} add constraint c check quantity is null or quantity != 13")
    for quantity in (12, 13, 14):
        source.xadd("trades", {"data": json.dumps({"trade_id": "T9", "price": "1", "quantity": quantity})})
    replicator.until_status(lambda r: r["failed_syncs"]["open"] == 1, "a row is parked")
    change = replicator.command("trace", "7", "--json").json["changes"][0]
    assert change["batch"]["delivered_at"] is None
    assert change["failed_syncs"][0]["status"] == "open"
    assert change["failed_syncs"][0]["error_column"] == "quantity"
    shown = replicator.command("trace", "7").out
    assert "parked" in shown and "delivered" not in shown and "(none)" not in shown
    many = [line for line in replicator.command("trace", "T9").out.splitlines() if " T9 " in line]
    assert ["parked" in line for line in many] == [False, True, False]
    clickhouse_server.execute(f"alter table {table} drop constraint c")
    assert replicator.command("failed", "retry", str(change["failed_syncs"][0]["id"])).code == 0
    replicator.until_status(lambda r: r["failed_syncs"]["open"] == 0, "it is delivered")
    change = replicator.command("trace", "7", "--json").json["changes"][0]
    assert (
        change["batch"]["delivered_at"]
        == change["sink"]["ledger"]["delivered_at"]
        > change["failed_syncs"][0]["last_failed_at"]
    )
    assert "resolved" in (shown := replicator.command("trace", "7").out) and "delivered" in shown


def test_trace_answers_from_the_file_and_says_that_clickhouse_does_not(
    replicator: Replicator, source: redis.Redis
) -> None:
    filled(replicator, source)
    replicator.kill()
    replicator.environment["CLICKHOUSE_ENDPOINT"] = "http://127.0.0.1:1"
    [change] = replicator.command("trace", "4", "--json").json["changes"]
    assert change["offset"] == 4
    assert "error" in change["sink"]

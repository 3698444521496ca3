"""``replicator state`` and ``replicator trace``, with a running service and without."""

from __future__ import annotations

import json

import redis
from replicator_process import Replicator

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


def test_trace_answers_from_the_file_and_says_that_clickhouse_does_not(
    replicator: Replicator, source: redis.Redis
) -> None:
    filled(replicator, source)
    replicator.kill()
    replicator.environment["CLICKHOUSE_ENDPOINT"] = "http://127.0.0.1:1"
    [change] = replicator.command("trace", "4", "--json").json["changes"]
    assert change["offset"] == 4
    assert "error" in change["sink"]

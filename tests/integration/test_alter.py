"""Columns that get added and types that grow while changes flow, and tables that someone else altered."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from replicator_process import Replicator, until
from tables_room import TablesRoom

from replicator import sink_ddl
from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import ConfigError
from replicator.schema import table_schema

ORDERS = """
[[tables]]
name = "orders"
key = ["id"]
[tables.columns]
id = "BIGINT"
n = "INTEGER"
price = "DECIMAL(9,2)"
side = "ENUM('buy')"
"""
NOTES = '[[tables]]\nname = "notes"\nkey = ["id"]\n[tables.columns]\nid = "BIGINT"\ntext = "VARCHAR"\n'
GROWN = (
    ORDERS.replace('n = "INTEGER"', 'n = "BIGINT"\nvenue = "VARCHAR"')
    .replace("DECIMAL(9,2)", "DECIMAL(18,4)")
    .replace("ENUM('buy')", "ENUM('buy', 'sell')")
)


@pytest.fixture
def room(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str
) -> Iterator[TablesRoom]:
    with TablesRoom.open(tmp_path, redis_url, clickhouse_server, clickhouse_database, ORDERS + NOTES) as found:
        yield found


def order(k: int) -> dict[str, object]:
    """Sent before and after alike: the old schema knows no venue, the new one does."""
    return {"id": k, "n": k, "price": f"{k}.25", "side": "buy", "venue": f"V{k}"}


@contextmanager
def load(room: TablesRoom, first: int) -> Iterator[None]:
    """Orders without pause, from a thread of its own, five at a time."""
    stop = threading.Event()

    def send() -> None:
        for k in range(first, first + 100_000, 5):
            if stop.wait(0.005):
                return
            room.put("orders", [order(k + n) for n in range(5)])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()


def delivered_beyond(room: TablesRoom, version: int) -> None:
    """Until changes of this schema version are in ClickHouse."""
    sql = f"select count() from orders_log where _schema_version = {version}"
    until(lambda: room.clickhouse(sql)[0][0] > 0, f"rows of version {version}")


def test_columns_are_added_and_widened_under_load_and_both_sides_stay_equal(room: TablesRoom) -> None:
    room.put("orders", [order(0)])
    room.settle()
    with load(room, 1):
        until(lambda: room.clickhouse("select count() from orders_log") > [(50,)], "some are through")
        assert room.reload(GROWN + NOTES) == ["orders is at version 2"]
        delivered_beyond(room, 2)
    room.put("orders", [{"id": 10**6, "n": 2**40, "price": "12345678901234.5678", "side": "sell", "venue": "X"}])
    room.settle()
    versions = "select _schema_version, count(*), count(venue), min(id) from orders_log group by 1 order by 1"
    (_, old, old_venues, _), (_, new, new_venues, first_new) = room.both(versions)
    assert (old_venues, new_venues) == (0, new)
    assert old == first_new, "each change is of the version it was logged under, in the order of the log"
    newest = "select n, price, side::varchar, venue from orders where id = 1000000"
    assert room.both(newest.replace("side::varchar", "toString(side)") if False else newest)[0][0] == 2**40
    room.assert_verified()
    room.fold("orders")
    room.assert_verified()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (('n = "INTEGER"', 'n = "SMALLINT"'), "'n' changed from INTEGER to SMALLINT"),
        (("DECIMAL(9,2)", "DECIMAL(9,3)"), "'price' changed from DECIMAL\\(9,2\\) to DECIMAL\\(9,3\\)"),
        (("ENUM('buy')", "ENUM('sell', 'buy')"), "'side' changed"),
        (('key = ["id"]', 'key = ["id", "n"]'), "the key changed from \\['id'\\]"),
        (('n = "INTEGER"\n', ""), "'n' was removed"),
        (('n = "INTEGER"', 'n = "INTEGER NOT NULL"'), "'n' became NOT NULL"),
    ],
)
def test_a_change_that_loses_something_is_refused_with_the_way_out(
    room: TablesRoom, edit: tuple[str, str], said: str
) -> None:
    another = '[[tables]]\nname = "added"\nkey = ["id"]\n[tables.columns]\nid = "BIGINT"\n'
    with pytest.raises(ConfigError, match=f"{said}.*undo the edit, or run `replicator rebuild orders`"):
        room.reload(ORDERS.replace(*edit) + NOTES + another)
    assert set(room.service.catalog.current) == {"orders", "notes"}, "nothing of a refused configuration is taken"
    assert room.session.rows("select distinct schema_version from table_schemas") == [(1,)]
    room.put("orders", [order(1)])
    room.settle()
    room.assert_verified()


def test_a_table_is_added_without_a_restart(room: TablesRoom) -> None:
    room.put("added", [{"id": 1, "x": {"y": 1}}])
    room.put("orders", [order(1)])
    room.settle()
    added = '[[tables]]\nname = "added"\nkey = ["id"]\n[tables.columns]\nid = "BIGINT"\nx = "JSON"\n'
    assert room.reload(ORDERS + NOTES + added) == ["added is at version 1"]
    until(lambda: "added" in room.service.progress.positions, "the new stream is read")
    room.settle()
    assert room.both("select id, x, _offset from added") == [(1, '{"y":1}', 2)]
    room.assert_verified()


@pytest.mark.parametrize("someone", ["add column mine String", "modify column n Nullable(Int64)"])
def test_someone_elses_alter_stops_that_table_before_a_row_is_sent(room: TablesRoom, someone: str) -> None:
    room.put("orders", [order(1)])
    room.settle()
    room.command(f"alter table orders_log {someone}")
    room.put("orders", [order(2)])
    room.put("notes", [{"id": 1, "text": "on"}])
    room.wait_delivered(lanes=["notes"])
    lane = room.service.deliver.lanes["orders"]
    reason = until(lambda: lane.stopped_reason, "the table is stopped")
    assert "orders_log in ClickHouse is not as it should be: column " in reason
    assert room.clickhouse("select max(id) from orders_log") == [(1,)]
    assert room.session.rows("select * from failed_syncs") == []
    undo = {"add": "drop column mine", "modify": "modify column n Nullable(Int32)"}[someone.split(maxsplit=1)[0]]
    room.command(f"alter table orders_log {undo}")
    room.settle()
    assert lane.stopped_reason == ""


def test_a_dropped_feed_is_made_anew_before_the_next_row(room: TablesRoom) -> None:
    room.put("orders", [order(1)])
    room.settle()
    room.command("drop view orders_feed")
    room.put("orders", [order(2)])
    room.settle()
    room.assert_verified()


@pytest.mark.parametrize("statements", [1, 2, 3])
def test_an_alter_that_was_cut_short_is_finished_by_the_next_start(room: TablesRoom, statements: int) -> None:
    room.put("orders", [order(1)])
    room.settle()
    old = room.service.catalog.current["orders"]
    room.reload(GROWN + NOTES)
    new = room.service.catalog.current["orders"]
    for sql in sink_ddl.alter_statements(old, new)[:statements]:
        room.command(sql)
    room.stop()
    room.start()
    room.put("orders", [order(2)])
    room.settle()
    assert room.both("select id, venue from orders order by id") == [(1, None), (2, "V2")]
    room.assert_verified()


def test_a_kill_in_the_middle_of_an_alter_on_sighup_loses_nothing(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse
) -> None:
    def orders() -> str:
        columns = "id, venue" if "venue" in replicator.sections else "id"
        sql = f"select {columns} from {replicator.database}.orders order by id format Values"
        return clickhouse_server.execute(sql).strip()

    def send(k: int) -> None:
        source.xadd("orders", {"data": json.dumps(order(k))})

    made = len(sink_ddl.renew_statements(table_schema("orders", {"id": "BIGINT"}, ["id"])))
    replicator.environment["REPLICATOR_FAILPOINTS"] = f"alter.inside=kill@{made + 2}"
    serve = replicator.sections
    replicator.configure(streams='["orders"]', sections=serve + ORDERS)
    replicator.start()
    send(1)
    replicator.until_status(
        lambda found: (found["log"]["head_offset"], found["sink"]["lag_changes"]) == (1, 0), "the first is through"
    )
    assert orders() == "(1)"
    replicator.configure(sections=serve + GROWN)
    replicator.signal(signal.SIGHUP)
    until(lambda: "configuration_reloaded" in replicator.log_text, "the edit is taken")
    send(2)
    assert replicator.wait() == -signal.SIGKILL
    del replicator.environment["REPLICATOR_FAILPOINTS"]
    replicator.start()
    send(3)
    replicator.until_status(
        lambda found: (found["log"]["head_offset"], found["sink"]["lag_changes"]) == (3, 0), "all is through"
    )
    assert orders() == "(1,NULL),(2,'V2'),(3,'V3')"
    assert replicator.stop() == 0

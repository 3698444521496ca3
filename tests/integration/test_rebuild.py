"""Rebuild: a table in ClickHouse made anew beside the old one; readers see one or the other, never less."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tables_room import TablesRoom
from verify_room import VerifyRoom, unchanged, wait_until

from replicator.config import load_settings
from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import ConfigError, SinkMisshapen, UsageError
from replicator.service_job import Jobs
from replicator.service_rebuild import Rebuilding, RebuildTask, drop_kept
from replicator.sink import ClickHouseSink
from replicator.state import fold
from replicator.verify_report import VerifyRequest

ORDERS = """
[[tables]]
name = "orders"
key = ["id"]
[tables.columns]
id = "BIGINT"
n = "INTEGER"
price = "DECIMAL(9,2)"
side = "VARCHAR"
"""


@pytest.fixture
def verified(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str
) -> Iterator[VerifyRoom]:
    with VerifyRoom.open(tmp_path, redis_url, clickhouse_server, clickhouse_database) as room:
        room.weight_digits = 5
        room.fill(600, at_once=200)
        yield room


@pytest.fixture
def room(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str
) -> Iterator[TablesRoom]:
    with TablesRoom.open(tmp_path, redis_url, clickhouse_server, clickhouse_database, ORDERS) as found:
        found.put("orders", [{"id": k, "n": k, "price": f"{k}.25", "side": "buy"} for k in range(100)])
        found.put("orders", [{"id": k, "n": k, "price": f"{k}.50", "side": "sell"} for k in range(0, 100, 3)])
        found.put("orders", [{"id": k} for k in range(0, 100, 10)], op="d")
        found.settle()
        yield found


def rebuild(service: Any, settings: Any, table: str, *, dry_run: bool = False) -> dict[str, Any]:
    rebuilding = Rebuilding(service=service, jobs=Jobs(database=service.database, stop=service.stop))
    return rebuilding.run(RebuildTask(table=table, settings=settings, dry_run=dry_run, actor="test"))


def reshape(room: TablesRoom, tables: str, *, dry_run: bool = False) -> dict[str, Any]:
    """Edit the configuration, which is refused, and rebuild."""
    with pytest.raises(ConfigError, match="replicator rebuild orders"):
        room.reload(tables)
    settings = load_settings(room.directory / "config", environ=room.environ)
    return rebuild(room.service, settings, "orders", dry_run=dry_run)


@contextmanager
def counting(room: VerifyRoom, table: str) -> Iterator[list[int]]:
    """Somebody who counts T without pause, on a connection of his own. What he saw, in order."""
    seen: list[int] = []
    quiet = threading.Event()
    sink = ClickHouseSink(room.service.sink.options)

    def count() -> None:
        while not quiet.is_set():
            seen.append(int(sink.scalar(f"select count() from {table}")))

    reader = threading.Thread(target=count)
    reader.start()
    try:
        wait_until(lambda: seen, "a first count")
        yield seen
        wanted = len(seen) + 2
        wait_until(lambda: len(seen) >= wanted or not reader.is_alive(), "counts after it")
        assert reader.is_alive(), "the reader met an error"
    finally:
        quiet.set()
        reader.join()
        sink.close()


def test_a_reader_never_sees_fewer_rows_while_a_table_is_made_anew_under_load(verified: VerifyRoom) -> None:
    quiet = threading.Event()

    def produce() -> None:
        """Keys only come: whoever counts must never see fewer."""
        for n in range(100_000):
            if quiet.wait(0.02):
                return
            rows = [{"trade_id": f"N{n}-{k}", "venue": "V", "price": "1.5", "quantity": k} for k in range(20)]
            verified.produce([("trades", {"data": json.dumps(row)}) for row in rows])

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        with counting(verified, "trades") as seen:
            done = rebuild(verified.service, verified.service.settings, "trades")
    finally:
        quiet.set()
        producer.join()
    assert seen == sorted(seen), "it went down"
    assert done["safe"] and done["copied_rows"] >= done["rows_from_log"] > 300
    verified.wait_delivered()
    assert verified.verify().mismatches == 0
    ours, theirs = verified.both()
    assert ours == theirs
    assert [loop.name for loop in verified.service.loops.values() if loop.restarts] == []
    [(action, subject)] = verified.session.rows("select action, subject from operator_actions where action = 'rebuild'")
    assert (action, subject) == ("rebuild", "trades")


def test_the_old_table_is_kept_until_a_verify_finds_the_new_one_right(verified: VerifyRoom) -> None:
    room = verified
    room.sql("alter table trades_log update price = price + 1 where _offset % 7 = 0")
    rebuild(room.service, room.service.settings, "trades")
    names = "select name from system.tables where database = currentDatabase() and endsWith(name, '{}') order by 1"
    kept = names.format("__rebuild_log")
    assert [name for (name,) in room.service.sink.rows(kept)] == ["trades__rebuild_log"]
    room.fill(10)  # then deliver has looked at the sink anew, and nobody but the repair mends what comes now
    spoilt = [at for (at,) in room.service.sink.rows("select min(_offset) from trades_log")]
    room.sql(f"delete from trades_log where _offset = {spoilt[0]}")
    report = room.verify()
    drop_kept(room.service, room.session, report)
    assert report.mismatches and room.service.sink.rows(kept), "not while something is wrong"
    report = room.repairer.repair(VerifyRequest(), actor="test").after
    assert report is not None
    drop_kept(room.service, room.session, report)
    assert not room.service.sink.rows(kept)
    rows = room.session.rows("select stage from rebuilds")
    assert rows == [("dropped",)]


def test_what_the_log_no_longer_holds_comes_from_the_old_table(verified: VerifyRoom) -> None:
    room = verified
    before = room.service.sink.rows("select * from trades_log final order by _offset")
    current = room.both()[1]
    for schema in room.service.catalog.current.values():
        fold(room.session, schema, room.service.changelog.head)
    room.log_sql("delete from change_log where log_offset <= 300")
    done = rebuild(room.service, room.service.settings, "trades")
    assert done["rows_from_old_table"] > 100
    after = room.service.sink.rows("select * from trades_log final order by _offset")
    assert [row[:-1] for row in after] == [row[:-1] for row in before], "all but the send"
    assert room.both()[1] == current == room.both()[0]
    assert room.verify().mismatches == 0


def test_a_table_that_somebody_has_spoilt_or_dropped_is_made_anew(verified: VerifyRoom) -> None:
    room = verified
    room.sql("alter table positions_log add column mine String")
    room.sql("drop table trades_state sync")
    for table in ("positions", "trades"):
        rebuild(room.service, room.service.settings, table)
    room.fill(100)
    assert room.verify().mismatches == 0
    ours, theirs = room.both()
    assert ours == theirs


def test_rows_of_another_pipeline_are_never_lost(verified: VerifyRoom) -> None:
    room = verified
    room.sql("insert into trades_log select * replace('other' as _pipeline) from trades_log limit 1")
    plan = rebuild(room.service, room.service.settings, "trades", dry_run=True)
    assert not plan["safe"] and "rows of other pipelines" in plan["problems"][0]
    with pytest.raises(SinkMisshapen, match="other pipelines"):
        rebuild(room.service, room.service.settings, "trades")
    with pytest.raises(UsageError, match="nowhere is no declared table"):
        rebuild(room.service, room.service.settings, "nowhere")


def test_a_dry_run_changes_nothing_on_either_side(room: TablesRoom) -> None:
    with unchanged(room.service):
        plan = rebuild(
            room.service, load_settings(room.directory / "config", environ=room.environ), "orders", dry_run=True
        )
        assert plan["safe"] and plan["rows_from_log"] == 144
        for edit in ("narrower", "another key"):
            assert reshape(room, RESHAPED[edit], dry_run=True)["safe"]


# ── the way to a declaration that no ALTER leads to ──

RESHAPED = {
    "narrower": ORDERS.replace('"INTEGER"', '"SMALLINT"').replace("DECIMAL(9,2)", "DECIMAL(5,2)"),
    "a column less": ORDERS.replace('side = "VARCHAR"\n', ""),
    "another key": ORDERS.replace('key = ["id"]', 'key = ["n", "id"]'),
    "not null": ORDERS.replace('"INTEGER"', '"INTEGER NOT NULL"'),
    "a column less and one more": ORDERS.replace('side = "VARCHAR"', 'venue = "VARCHAR"'),
    "another type": ORDERS.replace('price = "DECIMAL(9,2)"', 'price = "VARCHAR"'),
}


BOTH_WAYS = ("another key", "a column less and one more")
"""A pruned log is copied as a whole one is, and the old table's rows beside it: what it shows need not be shown twice but
for the two edits under which the rows of T, or the columns of both tables, are no longer those that were there."""
CASES = [(edit, True) for edit in RESHAPED] + [(edit, False) for edit in BOTH_WAYS]


@pytest.mark.parametrize(
    ("edit", "pruned"), CASES, ids=[f"{edit}, {'pruned' if pruned else 'whole'} log" for edit, pruned in CASES]
)
def test_a_refused_edit_is_taken_by_a_rebuild(room: TablesRoom, edit: str, pruned: bool) -> None:
    tables = RESHAPED[edit]
    if pruned:
        room.fold("orders")
        room.session.execute("delete from change_log where log_offset <= 50")
    before = room.both("select id, n from orders order by id")
    assert len(before) == 90
    done = reshape(room, tables)
    assert done["safe"] and done["schema_version"] == 2 and done["changes"]
    assert done["rows_from_old_table"] == (50 if pruned else 0)
    assert room.both("select id, n from orders order by id") == before
    room.reload(tables)
    assert room.service.catalog.current["orders"].schema_version == 2
    room.put("orders", [{"id": 7, "n": 7, "price": "8.75", "side": "sell", "venue": "X"}, {"id": 500, "n": 1}])
    room.put("orders", [{"id": 9, "n": 9}], op="d")
    room.settle()
    room.assert_verified()
    room.fold("orders")
    shown = room.both("select id, _offset from orders order by id")
    assert [row[0] for row in shown if row[0] in (7, 9, 500)] == [7, 500]
    room.stop()
    room.start()
    room.put("orders", [{"id": 8, "n": 8, "price": "1.00"}])
    room.settle()
    room.assert_verified()


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (ORDERS.replace('"INTEGER"', '"TINYINT"'), "99 changes do not fit"),
        (
            ORDERS.replace('key = ["id"]', 'key = ["side"]').replace('"VARCHAR"', '"VARCHAR"'),
            "several rows would be one",
        ),
        (ORDERS.replace('key = ["id"]', 'key = ["id", "side"]'), "one row would be several"),
    ],
    ids=["does not fit", "keys meet", "keys part"],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(room: TablesRoom, tables: str, said: str) -> None:
    if "do not fit" in said:
        room.put("orders", [{"id": 1000 + k, "n": 200 + k, "price": "1.00"} for k in range(99)])
        room.settle()
    files = [room.duckdb(f"select * from {t} order by all") for t in ("change_log", "sync_batches", "table_schemas")]
    tables_there = room.clickhouse("select name, uuid from system.tables where database = currentDatabase() order by 1")
    plan = reshape(room, tables, dry_run=True)
    assert not plan["safe"] and any(said in problem for problem in plan["problems"]), plan["problems"]
    with pytest.raises(SinkMisshapen, match=said):
        reshape(room, tables)
    assert files == [
        room.duckdb(f"select * from {t} order by all") for t in ("change_log", "sync_batches", "table_schemas")
    ]
    assert tables_there == room.clickhouse(
        "select name, uuid from system.tables where database = currentDatabase() order by 1"
    )
    room.put("orders", [{"id": 1, "n": 1, "price": "1.00", "side": "buy"}])
    room.settle()
    room.assert_verified()

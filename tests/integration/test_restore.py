"""Restore: the DuckDB file is gone, and comes back from ClickHouse as far as it was delivered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from replicator_process import Replicator, add
from service_room import ServiceRoom

from replicator.config import load_settings
from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import OwnershipLost, UsageError
from replicator.producer import Producer
from replicator.service_job import Jobs
from replicator.service_restore import restore
from replicator.service_verify import Task, Verification
from replicator.verify_report import VerifyRequest

TRADES = """
[[tables]]
name = "trades"
key = ["trade_id"]
[tables.columns]
trade_id = "VARCHAR"
n = "BIGINT"
"""
GROWN = TRADES.replace('n = "BIGINT"', 'n = "BIGINT"\nprice = "DECIMAL(18,6)"')


@pytest.fixture
def room(
    redis_url: str,
    clickhouse_server: ClickHouse,
    clickhouse_database: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[ServiceRoom]:
    room = ServiceRoom(
        directory=tmp_path,
        redis_url=redis_url,
        server=clickhouse_server,
        database=clickhouse_database,
        tables=getattr(request, "param", TRADES),
    )
    yield room
    room.stop()
    room.client.close()


def whole_log(room: ServiceRoom) -> list[tuple[Any, ...]]:
    return room.rows("select * from change_log where op <> 'v' order by log_offset")


def lose(room: ServiceRoom) -> None:
    """The service stops in order, and its file is gone."""
    room.stop()
    for path in room.directory.glob("log.duckdb*"):
        path.unlink()


def restored(room: ServiceRoom, *, dry_run: bool = False) -> dict[str, Any]:
    settings = load_settings(room.directory / "config", environ=room.environment())
    return restore(settings, actor="test", dry_run=dry_run, watch=lambda *_: None)


@contextmanager
def unchanged(room: ServiceRoom) -> Iterator[None]:
    """What is done in the block changes nothing in ClickHouse, Redis, or the file, if there is one."""

    def everywhere() -> list[object]:
        parts = (
            "select table, name, hash_of_all_files from system.parts where database = '{d}' and active order by 1, 2"
        )
        shapes = "select name, create_table_query from system.tables where database = '{d}' order by 1"
        redis_keys = sorted((key, room.client.dump(key)) for key in room.client.scan_iter())
        files = sorted((path.name, path.read_bytes()) for path in room.directory.glob("log.duckdb*"))
        return [room.asked(parts), room.asked(shapes), redis_keys, files]

    room.asked("system stop merges")
    try:
        before = everywhere()
        yield
        assert everywhere() == before
    finally:
        room.asked("system start merges")


def deliver(room: ServiceRoom, first: int, last: int) -> None:
    room.add(first, last)
    room.wait_delivered(last)


@pytest.mark.parametrize("room", ["", TRADES], ids=["undeclared", "declared"], indirect=True)
def test_the_delivered_log_comes_back_as_it_was_and_goes_on_from_redis(room: ServiceRoom) -> None:
    room.start()
    deliver(room, 1, 120)
    room.add(5, 40, op="u")
    room.wait_delivered(156)
    lost, states = whole_log(room), room.rows("select stream, last_entry_id, entries_read from stream_positions")
    lose(room)
    with unchanged(room):
        plan = restored(room, dry_run=True)
    assert (plan["head_offset"], plan["first_offset"], room.path.exists()) == (156, 1, False)
    done = restored(room)
    assert (done["changes_restored"], done["changes_undelivered"], done["mismatches"]) == (156, 0, 0)
    assert not any(stream["undelivered_may_be_gone"] for stream in done["streams"])
    assert done["taken_from"] is not None
    room.start()
    assert whole_log(room) == lost
    room.add(201, 210)
    room.wait_delivered(166)
    assert whole_log(room)[:156] == lost
    assert sorted({*room.held}) == [*range(1, 121), *range(201, 211)]
    assert room.rows("select stream, last_entry_id, entries_read - 10 from stream_positions")[0][0] == states[0][0]
    assert room.rows("select count(*) from stream_gaps") == [(0,)]
    assert room.rows("select timeline, fetched, voided from log_returns") == [(2, 156, 0)]
    assert room.rows("select action from operator_actions where action = 'restore'") == [("restore",)]


def test_what_was_undelivered_and_trimmed_is_said_and_the_rest_is_read_again(room: ServiceRoom) -> None:
    room.start()
    deliver(room, 1, 100)
    room.service.controls.pause("deliver", actor="test")
    room.add(101, 150)
    room.wait_logged(150)
    ids = [entry_id.decode() for entry_id, _ in room.client.xrange("trades")]
    lose(room)
    room.client.xtrim("trades", maxlen=20, approximate=False)
    with unchanged(room):
        plan = restored(room, dry_run=True)
    done = restored(room)
    assert (done["changes_restored"], done["changes_undelivered"]) == (100, 50)
    same = ("changes_restored", "changes_undelivered", "undelivered_offsets", "streams", "timeline", "not_restored")
    assert {name: plan[name] for name in same} == {name: done[name] for name in same}
    assert done["undelivered_offsets"] == [[101, 150]]
    [stream] = done["streams"]
    assert stream == {
        "stream": "trades",
        "entries_delivered": 100,
        "last_delivered_entry_id": ids[99],
        "undelivered_may_be_gone": True,
        "after_entry_id": ids[99],
        "before_entry_id": ids[130],
        "entries_without_trace": 30,
    }
    room.start()
    room.wait_delivered(170)
    assert list(room.held) == [*range(1, 101), *range(131, 151)]
    gap = room.rows("select after_entry_id, before_entry_id, cause, status from stream_gaps")
    assert gap == [(ids[99], ids[130], "restored", "open")]


def test_what_was_undelivered_and_is_still_in_redis_is_no_loss(room: ServiceRoom) -> None:
    room.start()
    deliver(room, 1, 60)
    room.service.controls.pause("deliver", actor="test")
    room.add(61, 90)
    room.wait_logged(90)
    lose(room)
    room.client.xtrim("trades", maxlen=50, approximate=False)  # entries that were delivered
    plan = restored(room, dry_run=True)
    done = restored(room)
    assert (done["changes_undelivered"], done["streams"][0]["undelivered_may_be_gone"]) == (30, False)
    assert done["streams"] == plan["streams"]
    assert done["streams"][0]["entries_without_trace"] == 0
    room.start()
    room.wait_delivered(120)
    assert list(room.held) == list(range(1, 91))
    assert room.rows("select count(*) from stream_gaps") == [(0,)]


@pytest.mark.parametrize("status", ["discarded", "open"])
def test_a_row_that_was_refused_and_is_nowhere_any_more_is_no_mismatch(room: ServiceRoom, status: str) -> None:
    """Its copy was in the lost file; the sink's ledger has its checksum, as of something parked."""
    room.start()
    deliver(room, 1, 10)
    room.asked("alter table {d}.trades_log add constraint c check n is null or n != 13")
    deliver(room, 11, 20)
    assert room.rows("select first_offset, status from failed_syncs") == [(13, "open")]
    room.rows(f"update failed_syncs set status = '{status}'")
    room.asked("alter table {d}.trades_log drop constraint c")
    lose(room)
    done = restored(room)
    assert (done["changes_restored"], done["undelivered_offsets"], done["mismatches"]) == (19, [[13, 13]], 0), done
    for _ in ("at the first start", "at the next"):
        room.start()
        room.wait_delivered(21)
        jobs = Jobs(database=room.service.database, stop=room.service.stop)
        found = Verification(service=room.service, jobs=jobs).run(Task(request=VerifyRequest()))
        assert found["mismatches"] == 0, found
        room.stop()


def test_an_entry_that_was_delivered_in_part_is_read_on_in_its_middle(room: ServiceRoom) -> None:
    rows = pa.table({"trade_id": [f"T{n}" for n in range(500)], "n": list(range(500))})
    room.start()
    with Producer(room.redis_url, key={"trades": "trade_id"}) as producer:
        producer.send_batch("trades", rows)
    room.wait_delivered(500)
    first = whole_log(room)[:200]
    lose(room)
    room.asked("delete from {d}.trades_log where _offset > 200")
    room.asked("delete from {d}.trades_state where _offset > 200")
    room.asked("truncate table {d}.replicator_batches")
    plan = restored(room, dry_run=True)
    done = restored(room)
    assert (done["changes_restored"], done["undelivered_offsets"]) == (200, [[201, 500]])
    assert (plan["changes_restored"], plan["undelivered_offsets"]) == (200, [[201, 500]])
    room.start()
    room.wait_delivered(800)
    assert whole_log(room)[:200] == first
    assert sorted(room.logged) == list(range(500)) == sorted(room.held)
    assert room.rows("select min(entry_row), max(entry_row), count(*) from change_log where log_offset > 500") == [
        (200, 499, 300)
    ]


def test_changes_of_older_declarations_come_back_under_them(room: ServiceRoom) -> None:
    room.start()
    deliver(room, 1, 30)
    room.stop()
    config = room.directory / "config" / "replicator.toml"
    config.write_text(config.read_text().replace(TRADES, GROWN))
    room.start()
    room.client.xadd("trades", {"data": '{"trade_id": "T1", "n": 31, "price": "1.5"}'})
    room.wait_delivered(31)
    lost, shapes = whole_log(room), room.rows("select table_name, schema_version, definition from table_schemas")
    lose(room)
    assert restored(room)["mismatches"] == 0
    room.start()
    assert whole_log(room) == lost
    assert {row[6] for row in lost} == {1, 2}
    assert sorted(room.rows("select table_name, schema_version, definition from table_schemas")) == sorted(shapes)


def test_a_restore_refuses_what_it_must_not_touch(room: ServiceRoom) -> None:
    with pytest.raises(UsageError, match="there is nothing to restore"):
        restored(room, dry_run=True)
    room.start()
    deliver(room, 1, 10)
    instance = room.service.instance_id
    kept = room.copy()
    room.client.set("replicator:main:lease", json.dumps({"host": "elsewhere", "pid": 7}), px=600_000)
    room.stop()
    for dry_run in (True, False):
        with unchanged(room), pytest.raises(UsageError, match="fills an empty one only"):
            restored(room, dry_run=dry_run)
    for path in room.directory.glob("log.duckdb*"):
        path.unlink()
    with pytest.raises(OwnershipLost, match="is being served by process 7 on elsewhere"):
        restored(room)
    assert room.client.get("replicator:main:owner") == instance.encode()
    room.client.delete("replicator:main:lease")
    assert restored(room)["taken_from"] == instance
    room.start()
    room.wait_delivered(10)
    room.stop()
    assert kept.exists()
    room.turn_back()
    room.start()
    assert "belongs to instance" in str(room.wait_failed()), "the lost file turns up again, and is refused"


def test_the_command_restores_and_the_service_runs_again(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    replicator.start()
    add(source, 1, 80)
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 80, "eighty changes delivered")
    assert replicator.command("restore", "--yes").code == 2, "it is in use"
    replicator.kill()
    for path in replicator.database_path.parent.glob("replicator.duckdb*"):
        path.unlink()
    assert replicator.command("restore").code == 2, "it needs a yes"
    planned = replicator.command("restore", "--dry-run")
    assert (planned.code, "80 changes would be logged again, up to offset 80" in planned.out) == (0, True), planned.err
    done = replicator.command("restore", "--yes", "--json")
    assert (done.code, done.json["changes_restored"], done.json["mismatches"]) == (0, 80, 0), done.err
    replicator.start()
    add(source, 81, 90)
    replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == 90, "it goes on")
    held = clickhouse_server.execute(f"select count(), uniqExact(log_offset) from {clickhouse_database}.change_log")
    assert held.split() == ["90", "90"]

"""Faults planted at random on both sides while a producer goes on: found, classed right, mended, and nothing else said."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from verify_room import VerifyRoom, wait_until

from replicator.embedded.clickhouse import ClickHouse

SEED = 20261123


@pytest.fixture
def room(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str
) -> Iterator[VerifyRoom]:
    with VerifyRoom.open(tmp_path, redis_url, clickhouse_server, clickhouse_database) as opened:
        opened.fill(2000)
        yield opened


@contextmanager
def live(room: VerifyRoom) -> Iterator[None]:
    """A producer that updates the same keys again and again, until the block ends."""
    quiet = threading.Event()
    flow = VerifyRoom.flow

    def produce() -> None:
        while not quiet.wait(0.05):
            room.produce(flow(room, 40, keys=200))

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        yield
    finally:
        quiet.set()
        producer.join()


def plant(room: VerifyRoom, dice: random.Random) -> dict[tuple[str, str, str], set[int]]:
    """Break both sides, at different offsets of what is delivered. Returns what verify must find."""
    rows = room.session.rows(
        "select log_offset from change_log where table_name = 'trades' and op = 'u' and log_offset <= "
        "(select max(last_offset) from sync_batches where table_name = 'trades' and delivered_at is not null)"
    )
    picked = dice.sample(sorted(at for (at,) in rows), 14)
    gone, altered, lost, twice = set(picked[:4]), set(picked[4:8]), set(picked[8:11]), set(picked[11:])
    room.sql(f"delete from trades_log where _offset in ({', '.join(map(str, gone))})")
    room.sql(f"alter table trades_log update price = price + 1 where _offset in ({', '.join(map(str, altered))})")
    room.log_sql(f"delete from change_log where log_offset in ({', '.join(map(str, lost))})")
    room.log_sql(f"insert into change_log select * from change_log where log_offset in ({', '.join(map(str, twice))})")
    return {
        ("trades", "sink", "missing"): gone,
        ("trades", "sink", "different"): altered,
        ("trades", "log", "missing"): lost,
        ("trades", "log", "doubled"): twice,
    }


def test_nothing_is_said_while_everything_moves_and_all_is_well(room: VerifyRoom) -> None:
    with live(room):
        for _ in range(4):
            report = room.verify()
            assert report.mismatches == 0, report.as_json()
    assert room.service.loops["deliver"].restarts == 0


def test_faults_planted_under_load_are_found_classed_and_mended(room: VerifyRoom) -> None:
    dice = random.Random(SEED)
    with live(room):
        for _ in range(2):
            expected = plant(room, dice)
            found = {name: set(offsets) for name, offsets in room.faults(room.verify()).items()}
            assert found == expected, f"seed {SEED}"
            report = room.repair()
            assert report.mismatches == 0, report.as_json()
    wait_until(lambda: room.service.changelog.head >= room.logged, "everything in the log")
    room.wait_delivered()
    assert room.verify().mismatches == 0
    ours, theirs = room.both()
    assert ours == theirs
    assert room.session.row("select count(*), count(distinct log_offset), max(log_offset) from change_log") == (
        room.logged,
        room.logged,
        room.logged,
    )
    assert [loop.name for loop in room.service.loops.values() if loop.restarts] == []


def test_a_repair_beside_deliver_never_lets_an_old_row_win(room: VerifyRoom) -> None:
    """Every row is sent again, old ones over newer ones, while newer ones still come."""
    with live(room):
        for _ in range(2):
            room.sql("truncate table trades_log")
            room.sql("truncate table trades_state")
            report = room.repair(tables=("trades",))
            assert report.mismatches == 0, report.as_json()
    room.wait_delivered()
    assert room.verify().mismatches == 0
    ours, theirs = room.both()
    assert ours == theirs

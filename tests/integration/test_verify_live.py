"""Faults planted at random on both sides while a producer goes on: found, classed right, mended, and nothing else said."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from plants import let_merge, plant, plant_doubled, plant_state, seed, still_keys
from verify_room import VerifyRoom, agreed, of, shared_room, wait_until

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.verify_report import Invariant


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, _clickhouse: ClickHouse, _valkey: Valkey) -> Iterator[VerifyRoom]:
    """One filled pipeline; both sides agree after each test."""
    with shared_room(tmp_path_factory.mktemp("live"), _valkey.start(), _clickhouse.start(), 2000) as room:
        room.weight_digits = 5  # of what comes while everything moves
        still_keys(room)
        yield room


@pytest.fixture
def room(shared: VerifyRoom) -> VerifyRoom:
    return shared.clean()


@contextmanager
def live(room: VerifyRoom) -> Iterator[None]:
    """A producer that updates the same keys again and again, until the block ends."""
    quiet = threading.Event()
    flow = VerifyRoom.flow

    def produce() -> None:
        while not quiet.wait(0.5):  # several times within one comparison
            room.produce(flow(room, 80, keys=200))

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        yield
    finally:
        quiet.set()
        producer.join()


def test_nothing_is_said_while_everything_moves_and_all_is_well(room: VerifyRoom) -> None:
    with live(room):
        for _ in range(2):
            agreed(room)
    assert room.service.loops["deliver"].restarts == 0


def test_faults_planted_under_load_are_found_classed_and_mended(room: VerifyRoom) -> None:
    dice = random.Random(planted := seed())
    with live(room):
        for _ in range(2):
            expected = plant(room, dice)
            expected |= plant_doubled(room, dice, [at for offsets in expected.values() for at in offsets])
            current = plant_state(room, dice)
            report = room.repair()
            found = {name: set(offsets) for name, offsets in room.faults(report.before).items()}
            assert found == expected, f"seed {planted}"
            keys = {(s.key, str(s.side), str(s.kind)) for s in of(report.before, "trades").state}
            assert {each for each in keys if str(each[0]).startswith(("GONE", "KEPT"))} == current, f"seed {planted}"
            assert report.mismatches == 0, (planted, report.as_json())
            let_merge(room)
    wait_until(lambda: room.service.changelog.head >= room.logged, "everything in the log")
    room.wait_delivered()
    agreed(room)
    ours, theirs = room.both()
    assert ours == theirs
    assert room.session.row("select count(*), count(distinct log_offset), max(log_offset) from change_log") == (
        room.logged,
        room.logged,
        room.logged,
    )
    assert [loop.name for loop in room.service.loops.values() if loop.restarts] == []


def test_a_lying_ledger_is_found_and_put_right_under_load(room: VerifyRoom) -> None:
    lie = (
        "alter table replicator_batches update checksum = '1:0:0' where table_name = 'trades' and (first_offset, last_offset)"
        " in (select argMin((first_offset, last_offset), first_offset) from replicator_batches where table_name = 'trades')"
    )
    stranger = (
        "insert into replicator_batches select * replace(3 as first_offset, 5 as last_offset) "
        "from (select * from replicator_batches final where table_name = 'positions' limit 1)"
    )
    with live(room):
        room.sql(lie)
        room.sql(stranger)
        report = room.repair()
        problems = [*report.before.problems, *(p for table in report.before.tables for p in table.problems)]
        assert sorted((str(p.invariant), p.batch.table if p.batch else "") for p in problems) == [
            (str(Invariant.LEDGER_TRUE), "positions"), (str(Invariant.LEDGER_TRUE), "trades"),
        ]  # fmt: skip
        assert room.faults(report.before) == {} and report.mismatches == 0, report.as_json()
    room.wait_delivered()
    agreed(room)


def test_a_repair_beside_deliver_never_lets_an_old_row_win(room: VerifyRoom) -> None:
    """Every row is sent again, old ones over newer ones, while newer ones still come."""
    with live(room):
        room.sql("truncate table trades_log")
        room.sql("truncate table trades_state")
        report = room.repair(tables=("trades",))
        assert report.mismatches == 0, report.as_json()
    room.wait_delivered()
    agreed(room)
    ours, theirs = room.both()
    assert ours == theirs

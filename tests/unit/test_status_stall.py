"""What stands still though it could move is noticed, whatever its loop's heartbeat says; what has a reason is not."""

from __future__ import annotations

import pytest
from attrs import evolve

from replicator.status import StreamStatus, TableStatus
from replicator.status_stall import Stall

STREAM = StreamStatus(stream="s", stream_epoch=0, last_entry_id="5-0", backlog_entries=3)
TABLE = TableStatus(table="t", checkpoint_offset=10, pending=4, circuit="closed")


def stream_seconds(stall: Stall, stream: StreamStatus, clock: float, *, paused: bool = False) -> float | None:
    return stall.streams([stream], paused=paused, clock=clock)[0].stalled_seconds


def table_seconds(stall: Stall, table: TableStatus, clock: float, *, due: bool = True) -> float | None:
    return stall.tables([table], {"t": due}, clock=clock)[0].stalled_seconds


def test_a_stream_that_has_work_and_stays_where_it_is_stands_still() -> None:
    stall = Stall()
    assert [stream_seconds(stall, STREAM, clock) for clock in (100.0, 107.0, 130.0)] == [0.0, 7.0, 30.0]
    moved = evolve(STREAM, last_entry_id="6-0")
    assert [stream_seconds(stall, moved, clock) for clock in (131.0, 135.0)] == [0.0, 4.0]
    anew = evolve(moved, stream_epoch=1)
    assert stream_seconds(stall, anew, 140.0) == 0.0


@pytest.mark.parametrize("backlog", [0, None], ids=["nothing to read", "unknown"])
def test_a_stream_without_known_work_does_not(backlog: int | None) -> None:
    stall, idle = Stall(), evolve(STREAM, backlog_entries=backlog)
    stream_seconds(stall, STREAM, 0.0)
    assert stream_seconds(stall, idle, 100.0) == 0.0
    assert stream_seconds(stall, STREAM, 101.0) == 1.0, "the waiting began when there was work again"
    assert stream_seconds(stall, STREAM, 200.0, paused=True) == 0.0


def test_a_table_that_is_due_and_stays_where_it_is_stands_still() -> None:
    stall = Stall()
    assert [table_seconds(stall, TABLE, clock) for clock in (0.0, 50.0)] == [0.0, 50.0]
    assert table_seconds(stall, evolve(TABLE, checkpoint_offset=11), 60.0) == 0.0


@pytest.mark.parametrize(
    "excuse", [{"paused": True}, {"stopped": "shape"}, {"last_error": "refused"}, {"circuit": "open"}, {"pending": 0}]
)
def test_a_table_that_says_why_it_waits_does_not(excuse: dict[str, object]) -> None:
    stall = Stall()
    table_seconds(stall, TABLE, 0.0)
    assert table_seconds(stall, evolve(TABLE, **excuse), 50.0) == 0.0


def test_a_table_within_its_interval_does_not() -> None:
    stall = Stall()
    table_seconds(stall, TABLE, 0.0)
    assert table_seconds(stall, TABLE, 50.0, due=False) == 0.0


def test_one_that_moves_hides_none_that_does_not() -> None:
    stall, other = Stall(), evolve(TABLE, table="u")
    for clock in (0.0, 40.0):
        moving = evolve(TABLE, checkpoint_offset=int(clock))
        found = stall.tables([moving, other], {"t": True, "u": True}, clock=clock)
    assert [table.stalled_seconds for table in found] == [0.0, 40.0]

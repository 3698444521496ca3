"""A lane's batches: contiguous, within their limits, never over a change of schema, nothing left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.deliver_lane import LaneState, Segment
from replicator.lanes import generic_lane
from replicator.model import BatchLimits

SEGMENTS = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 20), st.integers(0, 2)), min_size=1, max_size=30
)  # rows, offsets of other lanes between, whether the schema version rises


def lane_with(segments: list[tuple[int, int, int]], window: int) -> tuple[LaneState, list[tuple[int, int]]]:
    """A lane with these segments added; also (offset, schema version) of every change."""
    state, offset, version, changes = LaneState(lane=generic_lane()), 0, 0, []
    for wanted, between, rises in segments:
        rows = min(wanted, window)
        version += rises // 2
        first = offset + between + 1
        offset = first + rows - 1
        changes += [(each, version) for each in range(first, offset + 1)]
        state.add(Segment(end=offset, rows=rows, schema_version=version, oldest_at=float(first)), merge_below=window)
    return state, changes


@given(SEGMENTS, st.integers(4, 120))
def test_batches_are_contiguous_whole_and_within_their_limits(
    segments: list[tuple[int, int, int]], rows_max: int
) -> None:
    limits = BatchLimits(rows_max=rows_max, age_seconds_max=0)
    state, changes = lane_with(segments, max(1, rows_max // 4))
    cuts, pending = [], state.pending_rows
    assert pending == len(changes)
    while state.segments:
        cut = state.cut(limits)
        state.put_back(cut.offsets.last, cut.rows)
        cuts.append(cut)
    end = 0
    for cut in cuts:
        mine = [(o, v) for o, v in changes if cut.offsets.first <= o <= cut.offsets.last]
        assert cut.offsets.first == end + 1
        assert {version for _, version in mine} == {cut.schema_version}
        assert len(mine) == cut.rows <= rows_max
        end = cut.offsets.last
    assert end == changes[-1][0]
    assert state.idle


@given(SEGMENTS, st.integers(4, 60), st.data())
def test_what_memory_had_no_room_for_stays_pending(
    segments: list[tuple[int, int, int]], rows_max: int, data: st.DataObject
) -> None:
    limits = BatchLimits(rows_max=rows_max, age_seconds_max=0)
    state, changes = lane_with(segments, max(1, rows_max // 4))
    end, delivered = 0, []
    while state.segments:
        cut = state.cut(limits)
        mine = [offset for offset, _ in changes if cut.offsets.first <= offset <= cut.offsets.last]
        assert cut.offsets.first == end + 1
        assert not state.idle
        kept = data.draw(st.integers(1, len(mine)))
        end = cut.offsets.last if kept == len(mine) else mine[kept - 1]
        delivered += mine[:kept]
        state.put_back(end, kept)
    assert delivered == [offset for offset, _ in changes]


def test_a_range_that_could_not_be_read_is_cut_again_as_it_was() -> None:
    state, _ = lane_with([(10, 3, 0)], 25)
    limits = BatchLimits(rows_max=100, age_seconds_max=0)
    cut = state.cut(limits)
    state.put_back(cut.offsets.first - 1, 0)
    assert state.cut(limits) == cut


def test_a_full_lane_is_due_at_once_another_when_its_oldest_change_has_waited() -> None:
    limits = BatchLimits(rows_max=40, age_seconds_max=5)
    state, _ = lane_with([(10, 0, 0)] * 3, 10)
    assert state.due_in(limits, 4.0) == 1.0 + 5 - 4.0
    state, _ = lane_with([(10, 0, 0)] * 4, 10)
    assert state.due_in(limits, 4.0) == 0.0
    assert LaneState(lane=generic_lane()).due_in(limits, 4.0) is None


def test_changes_before_a_change_of_schema_wait_for_no_others() -> None:
    state, _ = lane_with([(3, 0, 0), (3, 0, 2)], 25)
    assert state.due_in(BatchLimits(rows_max=100, age_seconds_max=5), 4.0) == 0.0


def test_changes_logged_before_the_clock_was_set_back_do_not_wait_for_it() -> None:
    state, _ = lane_with([(10, 0, 0)], 10)
    assert state.due_in(BatchLimits(rows_max=100, age_seconds_max=5), -300.0) == 0.0


def test_segments_seen_before_are_not_taken_again() -> None:
    state, _ = lane_with([(5, 0, 0)], 25)
    state.add(Segment(end=5, rows=5, schema_version=0, oldest_at=0), merge_below=25)
    assert state.pending_rows == 5

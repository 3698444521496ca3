"""What deliver does when an attempt failed: wait, ask, split, park, stop. The decision itself is `retry`'s.

Guarantees: a batch leaves the main path only into ``failed_syncs``; a parked range that the sink refused gets its
ledger row before the checkpoint passes it, so that the ledger's union stays whole.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from replicator.deliver_lane import Circuit, LaneState, Redrive
from replicator.errors import LogCorrupt, ReplicatorError
from replicator.failpoints import failpoint
from replicator.ledger import NewBatch
from replicator.model import Batch, Failure, OffsetRange, ParkReason
from replicator.retry import Decision, decide

if TYPE_CHECKING:
    from replicator.deliver import Deliver

SPLIT_PARKED_MAX = 1_000
"""A batch that has had so many rows parked is no case of a few bad rows: its table stops."""

log = structlog.get_logger(__name__)


def after_failure(
    deliver: Deliver, state: LaneState, batch: Batch, redrive: Redrive | None, error: ReplicatorError
) -> None:
    """Decide and act on one failed attempt."""
    state.repeats = state.repeats + 1 if str(error) == state.last_error else 0
    state.last_error = str(error)
    decision = decide(error, repeats=state.repeats)
    log.warning(
        "batch_failed",
        lane=batch.lane,
        offsets=str(batch.offsets),
        code=error.code,
        decision=decision,
        error=str(error),
    )
    if redrive is not None:
        _redrive_failed(deliver, state, redrive, error, decision)
    elif decision in (Decision.WAIT, Decision.ASK):
        state.ask_first = state.ask_first or decision is Decision.ASK
        _wait_or_park(deliver, state, batch, error)
    elif decision is Decision.SPLIT:
        _split_or_park(deliver, state, batch, error)
    else:
        stop_lane(deliver, state, error)


def stop_lane(deliver: Deliver, state: LaneState, error: ReplicatorError) -> None:
    """The lane waits for the operator; it is tried again at the ladder's last rung, for the cause may be mended."""
    state.stopped_reason = str(error)
    state.try_at = time.monotonic() + deliver.settings.ladder().last_seconds
    log.error("lane_stopped", lane=state.lane.name, error=str(error))


def _wait_or_park(deliver: Deliver, state: LaneState, batch: Batch, error: ReplicatorError) -> None:
    wait_seconds = deliver.settings.ladder().wait_seconds(state.retries)
    if wait_seconds is not None:
        state.retries += 1
        state.try_at = time.monotonic() + wait_seconds
        return
    deliver.ledger.park(deliver.session, batch, _failure(ParkReason.OUTAGE, error, state.retries + 1))
    failpoint("park.after")
    state.frozen.popleft()
    state.checkpoint = batch.offsets.last
    _open_circuit(deliver, state)
    for failed in deliver.ledger.open_failures(deliver.session, batch.lane):
        if failed.offsets == batch.offsets:
            deliver.add_redrive(failed, requested_by="recovery")


def _open_circuit(deliver: Deliver, state: LaneState) -> None:
    """From now on only the parked batch goes out, as a probe at the last rung, until it succeeds."""
    state.circuit = Circuit.OPEN
    state.retries = 0
    state.try_at = time.monotonic() + deliver.settings.ladder().last_seconds
    log.error("circuit_opened", lane=state.lane.name, error=state.last_error)


def _redrive_failed(
    deliver: Deliver, state: LaneState, redrive: Redrive, error: ReplicatorError, decision: Decision
) -> None:
    """A redrive that fails stays parked. As the probe of an open circuit it is tried again; otherwise it was one try."""
    state.ask_first = decision is Decision.ASK
    state.try_at = time.monotonic() + deliver.settings.ladder().last_seconds
    failure = _failure(redrive.failed.reason, error, redrive.failed.attempts + 1)
    deliver.ledger.failed_again(deliver.session, redrive.failed, failure)
    if decision is Decision.SPLIT or state.circuit is Circuit.CLOSED:
        state.redrives.popleft()
        state.ask_first, state.try_at = False, 0.0
        state.circuit = Circuit.CLOSED


def _split_or_park(deliver: Deliver, state: LaneState, batch: Batch, error: ReplicatorError) -> None:
    if deliver.worker.rows_stand(state.lane, batch):
        return stop_lane(deliver, state, error)
    if batch.row_count > 1:
        children = _halves(deliver, batch)
        state.frozen.popleft()
        state.frozen.extendleft(reversed(deliver.ledger.split(deliver.session, batch, children)))
        failpoint("bisect.between_children")
        state.ask_first, state.in_doubt_since, state.repeats = False, 0.0, 0
        return None
    if state.split_rows >= SPLIT_PARKED_MAX:
        return stop_lane(deliver, state, error)
    deliver.sink.record([deliver.ledger_row(batch, "parked", "")])
    deliver.ledger.park(deliver.session, batch, _failure(ParkReason.REJECTED, error, state.retries + 1))
    failpoint("park.after")
    state.frozen.popleft()
    state.checkpoint = batch.offsets.last
    state.split_rows += 1
    state.sent()
    return None


def _halves(deliver: Deliver, batch: Batch) -> list[NewBatch]:
    """The batch as two, with about half of its rows each, contiguous in offsets."""
    lane = deliver.settings.lane(batch.lane, batch.schema_version)
    whole = deliver.worker.prepare(lane, batch.offsets, batch.schema_version)
    offsets = whole.table[lane.offset_column]
    if len(offsets) != batch.row_count:
        raise LogCorrupt(
            f"offsets {batch.offsets} of {batch.lane} held {batch.row_count} rows and now hold {len(offsets)}"
        )
    middle = offsets[batch.row_count // 2 - 1].as_py()
    ranges = (
        OffsetRange(first=batch.offsets.first, last=middle),
        OffsetRange(first=middle + 1, last=batch.offsets.last),
    )
    halves = (deliver.worker.prepare(lane, offsets, batch.schema_version) for offsets in ranges)
    return [
        NewBatch(
            lane=half.lane,
            offsets=half.offsets,
            row_count=half.table.num_rows,
            checksum=half.checksum,
            schema_version=half.schema_version,
        )
        for half in halves
    ]


def _failure(reason: ParkReason, error: ReplicatorError, attempts: int) -> Failure:
    code = None if error.code is None else str(error.code)
    return Failure(reason=reason, code=code, message=error.message, attempts=attempts)

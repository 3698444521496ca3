"""What deliver does when an attempt failed: wait, ask, split, park, stop. The decision itself is `retry`'s.

Guarantees: a batch leaves the main path only into ``failed_syncs``; a parked range that the sink refused gets its
ledger row before the checkpoint passes it, so that the ledger's union stays whole. Never talks to ClickHouse itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from replicator.deliver_lane import Circuit, LaneState, Redrive
from replicator.deliver_work import Bisection, Outcome
from replicator.errors import ReplicatorError
from replicator.failpoints import failpoint
from replicator.model import Batch, Failure, ParkReason
from replicator.retry import Decision, decide, told

if TYPE_CHECKING:
    from replicator.deliver import Deliver

PARKED_ROWS_MAX = 1_000
"""A batch that has had so many rows parked is no case of a few bad rows: its table stops."""

log = structlog.get_logger(__name__)


def after_failure(deliver: Deliver, state: LaneState, batch: Batch, redrive: Redrive | None, failed: Outcome) -> None:
    """Decide and act on one failed attempt."""
    trial, error = state.trial(batch), failed.error
    assert error is not None
    trial.repeats = trial.repeats + 1 if str(error) == trial.error else 0
    trial.error, state.last_error = str(error), told(error, asked=failed.asked)
    decision = decide(error, repeats=trial.repeats, asked=failed.asked)
    log.warning(
        "batch_failed",
        lane=batch.lane,
        offsets=str(batch.offsets),
        code=error.code,
        decision=decision,
        error=str(error),
    )
    trial.ask_first = trial.ask_first or decision is Decision.ASK
    ladder = deliver.settings.ladder()
    if decision is Decision.AGAIN:
        state.try_at = time.monotonic() + ladder.waits_seconds[0]
    elif decision is Decision.SPLIT:
        _bisect(deliver, state, batch, redrive, error)
    elif redrive is not None:
        _redrive_failed(deliver, state, redrive, error)
        if decision in (Decision.STOP, Decision.STOP_TABLE):
            stop_lane(deliver, state, error)
    elif decision in (Decision.WAIT, Decision.ASK):
        _wait_or_park(deliver, state, batch, error)
    else:
        stop_lane(deliver, state, error)


def resume_redrives(deliver: Deliver, wanted: Mapping[int, str]) -> None:
    """What an outage has parked is tried until it succeeds; of the rest, what somebody asked for (by id: who)."""
    for failed in deliver.ledger.open_failures(deliver.session):
        if failed.reason == ParkReason.OUTAGE:
            deliver.add_redrive(failed)
            deliver.state(failed.lane).circuit = Circuit.OPEN
        elif failed.id in wanted:
            deliver.add_redrive(failed, requested_by=wanted[failed.id])


def stop_lane(deliver: Deliver, state: LaneState, error: Exception, sentence: str = "") -> None:
    """The lane waits for the operator; it is tried again at the ladder's last rung, for the cause may be mended.

    ``sentence``: what the operator is told where the kind of the error does not say it.
    """
    state.stopped_reason = state.last_error = f"{sentence}: {error}" if sentence else told(error)
    state.try_at = time.monotonic() + deliver.settings.ladder().last_seconds
    log.error("lane_stopped", lane=state.lane.name, error=str(error))


# ── outage ──


def _wait_or_park(deliver: Deliver, state: LaneState, batch: Batch, error: ReplicatorError) -> None:
    trial = state.trial(batch)
    wait_seconds = deliver.settings.ladder().wait_seconds(trial.retries)
    if wait_seconds is not None:
        trial.retries += 1
        state.try_at = time.monotonic() + wait_seconds
        return
    deliver.ledger.park(deliver.session, batch, _failure(ParkReason.OUTAGE, error, trial.retries + 1))
    failpoint("park.after")
    _off_the_main_path(state, batch)
    state.circuit = Circuit.OPEN
    state.try_at = time.monotonic() + deliver.settings.ladder().last_seconds
    log.error("circuit_opened", lane=batch.lane, error=state.last_error)
    for failed in deliver.ledger.open_failures(deliver.session, batch.lane):
        if failed.offsets == batch.offsets:
            deliver.add_redrive(failed)


def _off_the_main_path(state: LaneState, batch: Batch) -> None:
    assert state.frozen[0] is batch
    state.frozen.popleft()
    state.checkpoint = batch.offsets.last
    state.settled(batch)


def _redrive_failed(deliver: Deliver, state: LaneState, redrive: Redrive, error: ReplicatorError) -> None:
    """A redrive that fails stays parked. The probe of an open circuit is tried again; an operator's was one try."""
    failure = _failure(redrive.failed.reason, error, redrive.failed.attempts + 1)
    deliver.ledger.failed_again(deliver.session, redrive.failed, failure)
    if redrive.is_probe:
        state.try_at = time.monotonic() + deliver.settings.ladder().last_seconds
    else:
        _done_with(state, redrive)


def _done_with(state: LaneState, redrive: Redrive) -> None:
    state.redrives.remove(redrive)
    state.settled(redrive.batch)


# ── poison ──


def _bisect(deliver: Deliver, state: LaneState, batch: Batch, redrive: Redrive | None, error: ReplicatorError) -> None:
    """Have a worker look for what is at fault; `after_bisection` takes its answer."""
    if _counts(redrive) and not (state.bisected and state.bisected.contains(batch.offsets)):
        state.bisected, state.parked_rows = batch.offsets, 0
        deliver.ledger.begin_bisection(deliver.session, batch)
    within = state.parked_rows < PARKED_ROWS_MAX or not _counts(redrive)
    bisection = Bisection(
        lane=deliver.settings.lane(batch.lane, batch.schema_version),
        batch=batch,
        error=error,
        parked_row=deliver.recorder.row(batch, "parked", "") if within else None,
    )
    deliver.send_off(state, batch, redrive, lambda: deliver.worker.bisect(bisection))


def after_halving(deliver: Deliver, state: LaneState, batch: Batch, redrive: Redrive | None, found: Outcome) -> None:
    """The children take the refused batch's place, in one transaction, each with its own token."""
    if redrive is not None:
        _done_with(state, redrive)
        for part in reversed(deliver.ledger.split_failed(deliver.session, redrive.failed, found.halves)):
            deliver.add_redrive(part, requested_by=redrive.requested_by, first=True)
    else:
        assert state.frozen[0] is batch
        children = deliver.ledger.split(deliver.session, batch, found.halves)
        state.frozen.popleft()
        state.settled(batch)
        state.frozen.extendleft(reversed(children))
    failpoint("bisect.between_children")
    state.answered()


def after_finding(deliver: Deliver, state: LaneState, batch: Batch, redrive: Redrive | None, found: Outcome) -> None:
    """One row is at fault: it is parked with a copy, and the others go on; but not for ever."""
    assert found.error is not None
    failure = _failure(ParkReason.REJECTED, found.error, state.trial(batch).retries + 1)
    if _counts(redrive) and state.parked_rows >= PARKED_ROWS_MAX:
        reason = f"{state.parked_rows} rows of one batch are parked and more are refused: {found.error.message}"
        stop_lane(deliver, state, ReplicatorError(reason, hint="mend the table; `failed list` shows the rows"))
        return
    if redrive is not None:
        deliver.ledger.reject_failed(deliver.session, redrive.failed, failure)
        _done_with(state, redrive)
    else:
        deliver.ledger.park(deliver.session, batch, failure)
        failpoint("park.after")
        _off_the_main_path(state, batch)
    state.parked_rows += _counts(redrive)
    state.answered()


def _counts(redrive: Redrive | None) -> bool:
    """Whether a row refused now is parked for the first time: one that an operator tries again is parked already."""
    return redrive is None or redrive.failed.reason is not ParkReason.REJECTED


def _failure(reason: ParkReason, error: ReplicatorError, attempts: int) -> Failure:
    code = None if error.code is None else str(error.code)
    return Failure(reason=reason, code=code, column=error.column, message=error.message, attempts=attempts)

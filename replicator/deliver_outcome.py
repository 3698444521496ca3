"""What deliver does with what a worker brought back.

Guarantees: an outcome is taken for the batch that it was asked about, redrive or not; never for another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from replicator.deliver_failure import after_failure, after_finding, after_halving, stop_lane
from replicator.deliver_lane import LaneState, Redrive
from replicator.deliver_record import Sent
from replicator.deliver_work import Outcome, Result
from replicator.failpoints import failpoint
from replicator.model import Batch
from replicator.retry import VIEW_AT_FAULT

if TYPE_CHECKING:
    from replicator.deliver import Deliver


def take_outcome(deliver: Deliver, state: LaneState, batch: Batch, redrive: Redrive | None, outcome: Outcome) -> None:
    """Act on one outcome. A worker that was stopped brings neither result nor error: the batch stays as it is."""
    if outcome.result in (Result.DELIVERED, Result.HELD):
        _delivered(deliver, state, batch, redrive, outcome)
    elif outcome.result is Result.NEEDS_NEW_SEND:
        _renew(deliver, state, batch, redrive)
    elif outcome.result is Result.HALVED:
        after_halving(deliver, state, batch, redrive, outcome)
    elif outcome.result is Result.AT_FAULT:
        after_finding(deliver, state, batch, redrive, outcome)
    elif outcome.result is Result.ROWS_STAND and outcome.error is not None:
        stop_lane(deliver, state, outcome.error, VIEW_AT_FAULT)
    elif outcome.error is not None:
        after_failure(deliver, state, batch, redrive, outcome)


def _delivered(deliver: Deliver, state: LaneState, batch: Batch, redrive: Redrive | None, outcome: Outcome) -> None:
    recorded = evolve(batch, attempt=state.trial(batch).retries + 1)
    deliver.recorder.add(Sent(state=state, batch=recorded, outcome=outcome, redrive=redrive))
    if redrive is not None:
        failpoint("redrive.after_send")
        state.redrives.remove(redrive)
    else:
        assert state.frozen[0] is batch
        state.frozen.popleft()
    state.settled(batch)
    state.answered()


def _renew(deliver: Deliver, state: LaneState, batch: Batch, redrive: Redrive | None) -> None:
    """Whether an earlier send is whole cannot be known: the next one goes out under a number of its own."""
    state.trials[batch.batch_id] = evolve(state.trial(batch), ask_first=False, first_sent_at=0.0)
    if redrive is not None:
        renewed = evolve(batch, send_seq=deliver.ledger.next_send(deliver.session))
        state.redrives[state.redrives.index(redrive)] = evolve(redrive, batch=renewed)
    else:
        assert state.frozen[0] is batch
        state.frozen[0] = deliver.ledger.renew(deliver.session, batch)

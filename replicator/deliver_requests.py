"""What an operator may have the delivering thread do between two of its turns: try now, send a parked range, let one go.

Guarantees: lane states are touched by their own thread only; a request either runs whole or not at all, and its
error goes to whoever asked.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotAnswered
from typing import TypeVar

from replicator.deliver import Deliver
from replicator.deliver_lane import Circuit
from replicator.errors import SinkUnavailable, UsageError
from replicator.model import FailedSync

ANSWER_SECONDS_MAX = 15.0
T = TypeVar("T")


def ask(deliver: Deliver, action: Callable[[], T]) -> T:
    """Run ``action`` in the delivering thread and return what it returns.

    Raises SinkUnavailable when delivery is not running or is busy for too long; the action then never runs.
    """
    answer: Future[T] = Future()

    def run() -> None:
        if answer.set_running_or_notify_cancel():
            try:
                answer.set_result(action())
            except Exception as error:  # it belongs to whoever asked
                answer.set_exception(error)

    deliver.requests.put(run)
    with deliver.capture.appended:
        deliver.capture.appended.notify_all()
    try:
        return answer.result(ANSWER_SECONDS_MAX)
    except NotAnswered as error:
        if not answer.cancel():
            return answer.result()
        raise SinkUnavailable(
            "delivery does not answer: it is down, or waits for ClickHouse",
            hint="`replicator status` says why; try again then",
        ) from error


def try_now(deliver: Deliver, batch_rows_max: int | None = None) -> int:
    """Cut every wait short: what failed is tried in this turn, what is pending is cut. Returns the checkpoint.

    ``batch_rows_max`` caps the batches that are not frozen yet, until everything is delivered.
    """
    for state in deliver.lanes.values():
        state.try_at = 0.0
    deliver.recorder.try_at = 0.0
    if batch_rows_max is not None:
        deliver.flush.rows_max = min(batch_rows_max, deliver.flush.rows_max or batch_rows_max)
    deliver.flush.set()
    return deliver.checkpoint


def redrive(deliver: Deliver, failed: FailedSync, *, requested_by: str) -> bool:
    """Have a parked range sent again now. Returns whether it was not waiting for that already."""
    state = deliver.state(failed.lane, failed.schema_version)
    state.try_at = 0.0
    if any(waiting.failed.id == failed.id for waiting in state.redrives):
        return False
    deliver.add_redrive(failed, requested_by=requested_by)
    return True


def let_go(deliver: Deliver, failed: FailedSync) -> None:
    """Stop sending a parked range again. Raises UsageError while it is on its way."""
    state = deliver.state(failed.lane, failed.schema_version)
    if state.redriving is not None and state.redriving.failed.id == failed.id:
        raise UsageError(f"failed sync {failed.id} is being sent at this moment", hint="ask again in a few seconds")
    for waiting in [waiting for waiting in state.redrives if waiting.failed.id == failed.id]:
        state.redrives.remove(waiting)
        state.settled(waiting.batch)
    if not state.redrives and state.circuit is Circuit.OPEN:
        state.circuit, state.try_at = Circuit.CLOSED, 0.0

"""The ledger in ClickHouse: what was delivered is written there before a checkpoint passes it.

Guarantees: one insert for everything delivered since the last; what could not be written is kept and written again.
Never blocks the delivering thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

import structlog
from attrs import define, field, frozen

from replicator.database import now
from replicator.deliver_lane import LaneState, Redrive
from replicator.deliver_pool import WorkerPool
from replicator.deliver_work import Outcome, Sink
from replicator.errors import ReplicatorError
from replicator.failpoints import failpoint
from replicator.model import Batch
from replicator.retry import Ladder
from replicator.sink import LedgerRow

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class Sent:
    """A delivered batch whose ledger row and checkpoint are still to be written."""

    state: LaneState
    batch: Batch
    outcome: Outcome
    redrive: Redrive | None = None


@define(kw_only=True)
class Recorder:
    """Owned by the delivering thread; a worker does the writing."""

    sink: Sink
    pipeline: str
    instance_id: str
    timeline: Callable[[], int]
    waiting: list[Sent] = field(factory=list)
    """Delivered, not yet in the ledger."""
    try_at: float = 0.0
    last_error: str = ""
    _failures: int = 0
    _writing: Future[None] | None = None
    _written: list[Sent] = field(factory=list)

    def add(self, sent: Sent) -> None:
        self.waiting.append(sent)

    def holds(self, state: LaneState) -> bool:
        """Whether something of this lane is still to be written."""
        return any(sent.state is state for sent in self.waiting)

    def write(self, pool: WorkerPool) -> None:
        """Have everything that waits written, unless that is under way or failed a moment ago."""
        if self._writing is not None or not self.waiting or time.monotonic() < self.try_at:
            return
        self._written = list(self.waiting)
        rows = [self.row(s.batch, "delivered", s.outcome.query_id) for s in self._written]
        self._writing = pool.submit(lambda: self._write(rows))

    def _write(self, rows: list[LedgerRow]) -> None:
        failpoint("ledger.before")
        self.sink.record(rows)
        failpoint("ledger.after")

    def take(self, ladder: Ladder) -> list[Sent]:
        """What has been written since the last call."""
        if self._writing is None or not self._writing.done():
            return []
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except ReplicatorError as error:
            self._hold_back(error, ladder)
            return []
        self._failures, self.last_error = 0, ""
        self.waiting = self.waiting[len(self._written) :]
        return self._written

    def _hold_back(self, error: ReplicatorError, ladder: Ladder) -> None:
        rung = min(self._failures, len(ladder.waits_seconds) - 1)
        self._failures += 1
        self.try_at = time.monotonic() + ladder.waits_seconds[rung]
        self.last_error = str(error)
        log.warning("ledger_not_written", error=str(error))

    @property
    def busy(self) -> Future[None] | None:
        return self._writing

    def forget(self) -> None:
        """After a restart of the loop the file says what is to be done."""
        self.waiting.clear()
        self._writing, self.try_at, self._failures = None, 0.0, 0

    def row(self, batch: Batch, status: str, query_id: str) -> LedgerRow:
        return LedgerRow(
            pipeline=self.pipeline,
            table_name=batch.lane,
            first_offset=batch.offsets.first,
            last_offset=batch.offsets.last,
            row_count=batch.row_count if status == "delivered" else 0,
            checksum=str(batch.checksum),
            status=status,
            send_seq=batch.send_seq,
            timeline=self.timeline(),
            instance_id=self.instance_id,
            query_id=query_id,
            delivered_at=now(),
        )

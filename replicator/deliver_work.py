"""What deliver's workers do: read a range as typed Arrow, send it, find out what became of a doubtful send.

Guarantees: a batch is sent only if it is, row for row, what was frozen; a doubtful insert is never sent again while
it may still run. Never writes to the log and never decides what happens after an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from threading import Event, local
from typing import Protocol

import numpy as np
import pyarrow as pa
from attrs import define, field, frozen

from replicator.database import Database, Session
from replicator.errors import LogCorrupt, ReplicatorError
from replicator.failpoints import failpoint
from replicator.lanes import ROW_HASH, Lane
from replicator.model import Batch, Checksum, OffsetRange, version_of
from replicator.sink import LedgerRow, Send, ServerFacts

RUNNING_POLL_SECONDS = 0.25
CLOCK_SLACK_SECONDS = 2


def boot_seconds() -> float:
    """Seconds since boot, the time asleep included where the system can tell: ClickHouse's uptime is held against it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Sink(Protocol):
    """The far end, as deliver needs it. The same contract tests run on every implementation."""

    def insert(self, send: Send, batch: pa.Table) -> str: ...
    def record(self, rows: Sequence[LedgerRow]) -> None: ...
    def running(self, pipeline: str, target: str, offsets: OffsetRange) -> int: ...
    def server(self) -> ServerFacts: ...
    def rows(self, sql: str, parameters: dict[str, object] | None = None) -> Sequence[Sequence[object]]: ...
    def forget(self) -> None: ...


class Result(StrEnum):
    """What became of one attempt."""

    DELIVERED = "delivered"
    HELD = "held"
    """An earlier attempt had delivered it: nothing was sent."""
    NEEDS_NEW_SEND = "needs_new_send"
    """Whether an earlier attempt was whole cannot be known: only a new send is safe."""
    ROWS_STAND = "rows_stand"
    """Refused, and yet the rows stand in the log table: a view is at fault, not the rows."""
    FAILED = "failed"


@frozen(kw_only=True)
class Prepared:
    """A range as Arrow, ready for its target but for ``_send``."""

    lane: str
    offsets: OffsetRange
    table: pa.Table
    checksum: Checksum
    schema_version: int


@frozen(kw_only=True)
class Outcome:
    result: Result
    query_id: str = ""
    error: ReplicatorError | None = None
    started_at: float = 0.0


@frozen(kw_only=True)
class Attempt:
    """One thing to do: send ``batch`` of ``lane``; ask first what became of earlier sends where that is in doubt."""

    lane: Lane
    batch: Batch
    prepared: Prepared | None
    number: int
    ask_first: bool
    in_doubt_since: float


@define
class Worker:
    """Runs in any thread of the pool; each thread has a session of its own."""

    database: Database
    sink: Sink
    pipeline: str
    timeline: Callable[[], int]
    stop: Event
    ensure: Callable[[Lane], None] = lambda lane: None
    """Makes the lane's tables where that is still to be done, and sees that they are as they should be."""
    _local: local = field(factory=local, init=False)

    def _session(self) -> Session:
        if not hasattr(self._local, "session"):
            self._local.session = self.database.session()
        session: Session = self._local.session
        return session

    def prepare(self, lane: Lane, offsets: OffsetRange, schema_version: int) -> Prepared:
        """Read the lane's changes of a range, typed and hashed, in the order of their offsets."""
        table = self._session().arrow(lane.batch_sql, {"first": offsets.first, "last": offsets.last})
        table = _in_order(table, lane.offset_column)
        hashes = table[ROW_HASH].to_numpy()
        checksum = Checksum(
            rows=table.num_rows,
            sum=int(np.add.reduce(hashes, dtype=np.uint64)),
            xor=int(np.bitwise_xor.reduce(hashes, dtype=np.uint64)),
        )
        table = table.drop_columns([ROW_HASH]).combine_chunks()
        table = table.append_column("_pipeline", pa.repeat(self.pipeline, table.num_rows))
        return Prepared(lane=lane.name, offsets=offsets, table=table, checksum=checksum, schema_version=schema_version)

    def attempt(self, attempt: Attempt) -> Outcome:
        """Send one batch. Errors of the sink come back in the outcome; LogCorrupt is raised."""
        started = boot_seconds()
        try:
            if attempt.ask_first:
                settled = self._settle(attempt)
                if settled is not None:
                    return settled
            prepared = attempt.prepared or self.prepare(
                attempt.lane, attempt.batch.offsets, attempt.batch.schema_version
            )
            _check_frozen(attempt.batch, prepared)
            started = boot_seconds()
            return self._send(attempt, prepared, started)
        except LogCorrupt:
            raise
        except ReplicatorError as error:
            return Outcome(result=Result.FAILED, error=error, started_at=started)

    def _send(self, attempt: Attempt, prepared: Prepared, started: float) -> Outcome:
        batch, send = attempt.batch, self.send_of(attempt.lane, attempt.batch, attempt.number)
        self.ensure(attempt.lane)
        numbers = pa.repeat(pa.scalar(send.send, pa.uint64()), prepared.table.num_rows)
        query_id = self.sink.insert(send, prepared.table.append_column("_send", numbers))
        failpoint("send.after")
        assert batch.row_count == prepared.table.num_rows
        return Outcome(result=Result.DELIVERED, query_id=query_id, started_at=started)

    def send_of(self, lane: Lane, batch: Batch, attempt: int) -> Send:
        return Send(
            pipeline=self.pipeline,
            target=lane.target,
            offsets=batch.offsets,
            checksum=batch.checksum,
            send=version_of(self.timeline(), batch.send_seq),
            attempt=attempt,
        )

    # ── doubtful sends ──

    def _settle(self, attempt: Attempt) -> Outcome | None:
        """Find out what became of an earlier send. None: send identically again, the token makes it harmless."""
        lane, batch = attempt.lane, attempt.batch
        while self.sink.running(self.pipeline, lane.target, batch.offsets):
            if self.stop.wait(RUNNING_POLL_SECONDS):
                return Outcome(result=Result.FAILED)
        if not self._restarted_since(attempt.in_doubt_since):
            return None
        if self.holds(lane, batch):
            return Outcome(result=Result.HELD)
        return Outcome(result=Result.NEEDS_NEW_SEND)

    def _restarted_since(self, since: float) -> bool:
        """Whether ClickHouse may have restarted after the first send; it keeps tokens of inserts it never finished."""
        if since == 0.0:
            return True
        return self.sink.server().uptime_seconds <= boot_seconds() - since + CLOCK_SLACK_SECONDS

    def holds(self, lane: Lane, batch: Batch) -> bool:
        """Whether the sink has exactly these rows, and the state table each key's last version among them."""
        where = {"pipeline": self.pipeline, "first": batch.offsets.first, "last": batch.offsets.last}
        count, total, xor = self.sink.rows(lane.held_sql(), where)[0]
        if Checksum(rows=int(str(count)), sum=int(str(total)), xor=int(str(xor))) != batch.checksum:
            return False
        return not lane.state_check or self.sink.rows(lane.state_check, where)[0][0] == 0

    def rows_stand(self, lane: Lane, batch: Batch) -> bool:
        """Whether a refused send left its rows in the log table all the same: then a view refused, not the table."""
        send = version_of(self.timeline(), batch.send_seq)
        where = {"pipeline": self.pipeline, "first": batch.offsets.first, "last": batch.offsets.last, "send": send}
        return self.sink.rows(lane.sent_rows_sql(), where)[0][0] == batch.row_count


def _check_frozen(batch: Batch, prepared: Prepared) -> None:
    if prepared.checksum != batch.checksum:
        raise LogCorrupt(
            f"offsets {batch.offsets} of {batch.lane} were frozen as {batch.checksum} and now read as {prepared.checksum}",
            hint="the log was changed underneath: stop writers to the file, then run `replicator restore`",
        )


def _in_order(table: pa.Table, offset_column: str) -> pa.Table:
    offsets = table[offset_column].to_numpy()
    if len(offsets) > 1 and not (offsets[1:] > offsets[:-1]).all():
        return table.take(pa.array(np.argsort(offsets, kind="stable")))
    return table

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
import pyarrow.compute as pc
from attrs import define, evolve, field, frozen

from replicator.database import Database, Session
from replicator.errors import DatabaseUnavailable, LogCorrupt, ReplicatorError, SinkMisshapen
from replicator.failpoints import failpoint
from replicator.lanes import ROW_HASH, Lane
from replicator.ledger import NewBatch
from replicator.model import Batch, Checksum, OffsetRange, version_of
from replicator.sink import LedgerRow, Send, ServerFacts

BATCH_BYTES_MAX = 64 << 20
"""A batch is cut shorter when its rows hold more: it stands in memory several times while it is sent."""
READ_ROWS = 2048
"""Rows that come out of DuckDB at a time: one of its vectors."""
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
    def held(self, lane: Lane, pipeline: str, offsets: OffsetRange) -> Checksum: ...
    def keys_behind(self, lane: Lane, pipeline: str, offsets: OffsetRange) -> int: ...
    def rows_of_send(self, lane: Lane, pipeline: str, offsets: OffsetRange, send: int) -> int: ...
    def server(self) -> ServerFacts: ...


class Result(StrEnum):
    """What became of one attempt."""

    DELIVERED = "delivered"
    HELD = "held"
    """An earlier attempt had delivered it: nothing was sent."""
    NEEDS_NEW_SEND = "needs_new_send"
    """Whether an earlier attempt was whole cannot be known: only a new send is safe."""
    ROWS_STAND = "rows_stand"
    """Refused, and yet the rows stand in the log table: a view is at fault, not the rows."""
    HALVED = "halved"
    """Refused, and cut in two."""
    AT_FAULT = "at_fault"
    """Refused, and a single row: it is the one; the ledger in ClickHouse says so already."""
    FAILED = "failed"


@frozen(kw_only=True)
class Prepared:
    """A range as Arrow, ready for its target but for ``_send``."""

    lane: str
    offsets: OffsetRange
    table: pa.Table
    checksum: Checksum
    schema_version: int

    def as_new_batch(self) -> NewBatch:
        return NewBatch(
            lane=self.lane,
            offsets=self.offsets,
            row_count=self.table.num_rows,
            checksum=self.checksum,
            schema_version=self.schema_version,
        )


@frozen(kw_only=True)
class Outcome:
    result: Result
    query_id: str = ""
    error: ReplicatorError | None = None
    asked: bool = False
    """The error came of a question or of making ready, not of an insert: it says nothing of the rows."""
    halves: tuple[NewBatch, ...] = ()


@frozen(kw_only=True)
class Attempt:
    """One thing to do: send ``batch`` of ``lane``; ask first what became of earlier sends where that is in doubt."""

    lane: Lane
    batch: Batch
    prepared: Prepared | None
    number: int
    ask_first: bool
    first_sent_at: float


@frozen(kw_only=True)
class Bisection:
    """A refused batch to be cut in two, or, when it is one row, to be recorded as parked by ``parked_row``."""

    lane: Lane
    batch: Batch
    error: ReplicatorError
    parked_row: LedgerRow | None
    """None where the bound on parked rows is reached: then nothing is recorded."""


@define
class Worker:
    """Runs in any thread of the pool; each thread has a session of its own."""

    database: Database
    sink: Sink
    pipeline: str
    timeline: Callable[[], int]
    stop: Event
    ensure: Callable[[Lane], None] = lambda _: None
    """Makes the lane's tables where that is still to be done, and sees that they are as they should be."""
    oldest: Callable[[], int] = lambda: 1
    """The first offset that the log still holds."""
    _local: local = field(factory=local, init=False)

    def _session(self) -> Session:
        if not hasattr(self._local, "session"):
            self._local.session = self.database.session()
        session: Session = self._local.session
        return session

    def prepare(
        self,
        lane: Lane,
        offsets: OffsetRange,
        schema_version: int,
        bytes_max: int | None = None,
        rows_max: int | None = None,
    ) -> Prepared:
        """Read the lane's changes of a range, typed and hashed, in the order of their offsets.

        With ``bytes_max`` the range may come back shorter: as much of it as memory has room for. With ``rows_max`` it
        has no more rows than that.
        """
        while True:
            try:
                table, is_whole = self._read(lane, offsets, bytes_max, rows_max)
                break
            except DatabaseUnavailable as error:
                if error.code != "memory":
                    raise
                if bytes_max is None or len(offsets) == 1:
                    self.database.relieve()
                    raise
                offsets = OffsetRange(first=offsets.first, last=offsets.first + len(offsets) // 2 - 1)
        rows = min(table.num_rows, rows_max or table.num_rows, _rows_within(table, bytes_max))
        if rows < table.num_rows or not is_whole:
            table = table.slice(0, rows)
            offsets = evolve(offsets, last=table[lane.offset_column][-1].as_py())
        checksum = _checksum(table[ROW_HASH].to_numpy())
        table = table.drop_columns([ROW_HASH])
        table = table.append_column("_pipeline", pa.repeat(self.pipeline, table.num_rows))
        return Prepared(lane=lane.name, offsets=offsets, table=table, checksum=checksum, schema_version=schema_version)

    def _read(
        self, lane: Lane, offsets: OffsetRange, bytes_max: int | None, rows_max: int | None
    ) -> tuple[pa.Table, bool]:
        """The range's rows in order and True; or, and False, those of its beginning that reach the bounds."""
        where = {"first": offsets.first, "last": offsets.last}
        batches: list[pa.RecordBatch] = []
        size, rows, is_whole = 0, 0, True
        sql = lane.batch_sql if offsets.first >= self.oldest() else lane.batch_sql_with_copies()
        with self._session().reader(sql, where, READ_ROWS) as reader:
            for batch in reader:
                batches.append(batch)
                size, rows = size + batch.nbytes, rows + batch.num_rows
                enough = (bytes_max is not None and size > bytes_max) or (rows_max is not None and rows > rows_max)
                if enough and _is_ordered(batches, lane.offset_column):
                    is_whole = False
                    break
            table = pa.Table.from_batches(batches, reader.schema).combine_chunks()
        if _is_ordered(table.to_batches(), lane.offset_column):
            return table, is_whole
        return table.take(pc.sort_indices(table[lane.offset_column])), is_whole

    def attempt(self, attempt: Attempt) -> Outcome:
        """Send one batch. Errors of the sink come back in the outcome; LogCorrupt is raised."""
        inserting = False
        try:
            if attempt.ask_first:
                settled = self._settle(attempt)
                if settled is not None:
                    return settled
            prepared = attempt.prepared or self.prepare(
                attempt.lane, attempt.batch.offsets, attempt.batch.schema_version
            )
            _check_frozen(attempt.batch, prepared)
            self.ensure(attempt.lane)
            inserting = True
            return self._send(attempt, prepared)
        except LogCorrupt:
            raise
        except ReplicatorError as error:
            return Outcome(result=Result.FAILED, error=error, asked=not inserting)

    def _send(self, attempt: Attempt, prepared: Prepared) -> Outcome:
        batch, send = attempt.batch, self.send_of(attempt.lane, attempt.batch, attempt.number)
        numbers = pa.repeat(pa.scalar(send.send, pa.uint64()), prepared.table.num_rows)
        query_id = self.sink.insert(send, prepared.table.append_column("_send", numbers))
        failpoint("send.after")
        assert batch.row_count == prepared.table.num_rows
        return Outcome(result=Result.DELIVERED, query_id=query_id)

    def bisect(self, bisection: Bisection) -> Outcome:
        """Find out what is at fault in a refused batch: a view, one of its halves, or its only row."""
        lane, batch, error = bisection.lane, bisection.batch, bisection.error
        try:
            if self.rows_stand(lane, batch):
                return Outcome(result=Result.ROWS_STAND, error=error)
            if batch.row_count > 1:
                return Outcome(result=Result.HALVED, error=error, halves=self._halves(lane, batch))
            if bisection.parked_row is not None:
                self.sink.record([bisection.parked_row])
            return Outcome(result=Result.AT_FAULT, error=error)
        except LogCorrupt:
            raise
        except ReplicatorError as trouble:
            return Outcome(result=Result.FAILED, error=trouble, asked=True)

    def _halves(self, lane: Lane, batch: Batch) -> tuple[NewBatch, ...]:
        """The batch as two, with about half of its rows each, contiguous in offsets."""
        whole = self.prepare(lane, batch.offsets, batch.schema_version)
        _check_frozen(batch, whole)
        middle = whole.table[lane.offset_column][batch.row_count // 2 - 1].as_py()
        first = evolve(batch.offsets, last=middle)
        second = evolve(batch.offsets, first=middle + 1)
        return tuple(self.prepare(lane, half, batch.schema_version).as_new_batch() for half in (first, second))

    def send_of(self, lane: Lane, batch: Batch, attempt: int) -> Send:
        return Send(
            pipeline=self.pipeline,
            target=lane.target,
            offsets=batch.offsets,
            checksum=batch.checksum,
            send=version_of(self.timeline(), batch.send_seq),
            attempt=attempt,
            schema=lane.arrow,
        )

    # ── doubtful sends ──

    def _settle(self, attempt: Attempt) -> Outcome | None:
        """Find out what became of an earlier send. None: send identically again, the token makes it harmless."""
        lane, batch = attempt.lane, attempt.batch
        while self.sink.running(self.pipeline, lane.target, batch.offsets):
            if self.stop.wait(RUNNING_POLL_SECONDS):
                return Outcome(result=Result.FAILED)
        if self.holds(lane, batch):
            return Outcome(result=Result.HELD)
        return Outcome(result=Result.NEEDS_NEW_SEND) if self._restarted_since(attempt.first_sent_at) else None

    def _restarted_since(self, since: float) -> bool:
        """Whether ClickHouse may have restarted after the first send; it keeps tokens of inserts it never finished."""
        if since == 0.0:
            return True
        return self.sink.server().uptime_seconds <= boot_seconds() - since + CLOCK_SLACK_SECONDS

    def holds(self, lane: Lane, batch: Batch) -> bool:
        """Whether the sink has exactly these rows, and the state table each key's last version among them.

        A table that is gone has none: the next send makes it anew.
        """
        try:
            if self.sink.held(lane, self.pipeline, batch.offsets) != batch.checksum:
                return False
            return self.sink.keys_behind(lane, self.pipeline, batch.offsets) == 0
        except SinkMisshapen:
            return False

    def rows_stand(self, lane: Lane, batch: Batch) -> bool:
        """Whether a refused send left its rows in the log table all the same: then a view refused, not the table."""
        send = version_of(self.timeline(), batch.send_seq)
        return self.sink.rows_of_send(lane, self.pipeline, batch.offsets, send) == batch.row_count


def _check_frozen(batch: Batch, prepared: Prepared) -> None:
    if prepared.checksum != batch.checksum:
        raise LogCorrupt(
            f"offsets {batch.offsets} of {batch.lane} were frozen as {batch.checksum} and now read as {prepared.checksum}",
            hint="the log was changed underneath: stop writers to the file, then run `replicator restore`",
        )


def _checksum(hashes: np.ndarray) -> Checksum:
    return Checksum(
        rows=len(hashes),
        sum=int(np.add.reduce(hashes, dtype=np.uint64)),
        xor=int(np.bitwise_xor.reduce(hashes, dtype=np.uint64)),
    )


def _rows_within(table: pa.Table, bytes_max: int | None) -> int:
    """How many of the first rows are no more than so many bytes; one at least, however large it is."""
    if bytes_max is None or table.nbytes <= bytes_max:
        return table.num_rows
    fits, over = 1, table.num_rows
    while over - fits > 1:
        middle = (fits + over) // 2
        fits, over = (middle, over) if table.slice(0, middle).nbytes <= bytes_max else (fits, middle)
    return fits


def _is_ordered(batches: Sequence[pa.RecordBatch], offset_column: str) -> bool:
    offsets = np.concatenate([batch[offset_column].to_numpy() for batch in batches]) if batches else np.empty(0)
    return bool((offsets[1:] > offsets[:-1]).all())

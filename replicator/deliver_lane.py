"""One lane's bookkeeping while delivering: what waits, what is frozen, when it may be tried again. No I/O.

Guarantees: batches of a lane are contiguous (first = previous last + 1), never exceed the row limit and never span
a schema version.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from enum import StrEnum
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from replicator.lanes import Lane
from replicator.model import Batch, BatchLimits, FailedSync, OffsetRange

if TYPE_CHECKING:
    from replicator.deliver_work import Outcome, Prepared

SEGMENTS_PER_BATCH = 4


class Circuit(StrEnum):
    """Whether a lane sends: open means that only probes go out."""

    CLOSED = "closed"
    OPEN = "open"


@frozen(kw_only=True)
class Segment:
    """Pending changes of a lane from the previous segment's end (exclusive) to ``end`` (inclusive)."""

    end: int
    rows: int
    schema_version: int
    oldest_at: float
    """When its oldest change was logged, epoch seconds."""


@frozen(kw_only=True)
class Cut:
    """The range of a lane's next batch."""

    offsets: OffsetRange
    rows: int
    schema_version: int
    oldest_at: float


@frozen(kw_only=True)
class Redrive:
    """A parked range that is to be sent again under a new send, beside the main path."""

    failed: FailedSync
    batch: Batch
    requested_by: str


@define
class LaneState:
    """All that deliver remembers of one lane. Owned by the delivering thread."""

    lane: Lane
    batched: int = 0
    """End of the last frozen or parked batch: the next one begins behind it."""
    checkpoint: int = 0
    scanned: int = 0
    segments: deque[Segment] = field(factory=deque)
    frozen: deque[Batch] = field(factory=deque)
    redrives: deque[Redrive] = field(factory=deque)
    prepared: Prepared | None = None
    """The next range, read and hashed but not frozen."""
    preparing: Future[Prepared] | None = None
    sending: Future[Outcome] | None = None
    redriving: Redrive | None = None
    """What ``sending`` sends, when it is a redrive."""
    retries: int = 0
    repeats: int = 0
    last_error: str = ""
    try_at: float = 0.0
    circuit: Circuit = Circuit.CLOSED
    stopped_reason: str = ""
    ask_first: bool = False
    """What became of the batch at the head of ``frozen`` is not known."""
    in_doubt_since: float = 0.0
    """When that batch was first sent, on the clock of `boot_seconds`; 0 when by another process."""
    split_rows: int = 0
    """Rows parked from the batch that is being bisected."""

    def add(self, segment: Segment, *, merge_below: int) -> None:
        """Append pending changes; small neighbours of one version are joined."""
        if segment.end <= self.scanned:
            return
        last = self.segments[-1] if self.segments else None
        if last and last.schema_version == segment.schema_version and last.rows + segment.rows <= merge_below:
            self.segments[-1] = evolve(last, end=segment.end, rows=last.rows + segment.rows)
        else:
            self.segments.append(segment)
        self.scanned = segment.end

    @property
    def pending_rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def oldest_at(self) -> float | None:
        return self.segments[0].oldest_at if self.segments else None

    def due(self, limits: BatchLimits, clock: float) -> bool:
        """Whether the next batch is to be cut: it is full, or its oldest change has waited long enough."""
        if not self.segments:
            return False
        full = len(self.segments) > 1 or self.segments[0].rows >= limits.rows_max * 3 // 4
        return full or clock - self.segments[0].oldest_at >= limits.age_seconds_max

    def cut(self, limits: BatchLimits) -> Cut:
        """Take the next batch's segments. The caller knows that there are some."""
        first = self.segments.popleft()
        end, rows = first.end, first.rows
        while self.segments and self.segments[0].schema_version == first.schema_version:
            if rows + self.segments[0].rows > limits.rows_max:
                break
            following = self.segments.popleft()
            end, rows = following.end, rows + following.rows
        offsets = OffsetRange(first=self.batched + 1, last=end)
        self.batched = end
        return Cut(offsets=offsets, rows=rows, schema_version=first.schema_version, oldest_at=first.oldest_at)

    def sent(self) -> None:
        """The batch at the head was delivered: forget its troubles."""
        self.retries, self.repeats, self.last_error, self.try_at = 0, 0, "", 0.0
        self.ask_first, self.in_doubt_since = False, 0.0
        self.circuit, self.stopped_reason = Circuit.CLOSED, ""

"""One lane's bookkeeping while delivering: what waits, what is frozen, when it may be tried again. No I/O.

Guarantees: batches of a lane are contiguous (first = previous last + 1), never exceed the row limit and never span
a schema version; what is known of a batch's tries is kept per batch, never mixed with another's.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from enum import StrEnum
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from replicator.lanes import Lane
from replicator.model import Batch, BatchLimits, FailedSync, OffsetRange

if TYPE_CHECKING:
    from replicator.deliver_work import Outcome, Prepared


FROZEN_MAX = 2
"""One batch may be frozen while the one before it is on its way."""


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

    @property
    def is_probe(self) -> bool:
        """Whether it is deliver's own, tried until it succeeds; an operator's is tried once."""
        return self.requested_by == RECOVERY


RECOVERY = "recovery"


@define
class Trial:
    """What is known of the tries of one batch."""

    retries: int = 0
    repeats: int = 0
    """How often the last error has come in the same words."""
    error: str = ""
    ask_first: bool = False
    """What became of an earlier send is not known."""
    first_sent_at: float = 0.0
    """On the clock of `boot_seconds`; 0 when by another process, if at all."""


@frozen(kw_only=True)
class Outgoing:
    """What a worker is sending or bisecting: a frozen batch, or a redrive's."""

    batch: Batch
    future: Future[Outcome]
    redrive: Redrive | None = None


class Flush(threading.Event):
    """Set to have everything pending sent now, due or not, in batches of at most ``rows_max`` where one is given."""

    rows_max: int | None = None

    def clear(self) -> None:
        self.rows_max = None
        super().clear()


@define
class LaneState:
    """All that deliver remembers of one lane. Owned by the delivering thread."""

    lane: Lane
    batched: int = 0
    """End of the last frozen or parked batch: the next one begins behind it."""
    checkpoint: int = 0
    stored: bool = False
    """Whether the file has a checkpoint of this lane."""
    scanned: int = 0
    segments: deque[Segment] = field(factory=deque)
    frozen: deque[Batch] = field(factory=deque)
    redrives: deque[Redrive] = field(factory=deque)
    trials: dict[str, Trial] = field(factory=dict)
    cutting: Cut | None = None
    """What is being prepared."""
    preparing: Future[Prepared] | None = None
    prepared: Prepared | None = None
    """The next range, read and hashed but not frozen; or the frozen batch at the head, not sent yet."""
    sending: Outgoing | None = None
    last_error: str = ""
    try_at: float = 0.0
    circuit: Circuit = Circuit.CLOSED
    stopped_reason: str = ""
    bisected: OffsetRange | None = None
    """The batch that was cut last: its parts lie within."""
    parked_rows: int = 0
    """Rows parked of it."""

    # ── what is pending ──

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

    def due_in(self, limits: BatchLimits, now: float) -> float | None:
        """Seconds until the next batch is to be cut, not above 0: at once. None when nothing is pending.

        At once when it is full, and when its oldest change was logged later than ``now``: the clock was set back since.
        """
        if not self.segments:
            return None
        first = self.segments[0]
        ends_here = any(segment.schema_version != first.schema_version for segment in self.segments)
        full = ends_here or self.pending_rows >= limits.rows_max
        return 0.0 if full or first.oldest_at > now else first.oldest_at + limits.age_seconds_max - now

    def cut(self, limits: BatchLimits) -> Cut:
        """Take the next batch's segments. The caller knows that there are some."""
        first = self.segments[0]
        end, rows, taken = first.end, first.rows, 1
        for following in list(self.segments)[1:]:
            if following.schema_version != first.schema_version or rows + following.rows > limits.rows_max:
                break
            end, rows, taken = following.end, rows + following.rows, taken + 1
        offsets = OffsetRange(first=self.batched + 1, last=end)
        self.cutting = Cut(offsets=offsets, rows=rows, schema_version=first.schema_version, oldest_at=first.oldest_at)
        self.batched = end
        for _ in range(taken):  # after ``cutting`` is set: others ask at any moment whether anything is pending
            self.segments.popleft()
        return self.cutting

    def put_back(self, after: int, rows: int) -> None:
        """Of the range being cut, only the offsets through ``after`` (with ``rows`` changes) became a batch."""
        cut = self.cutting
        assert cut is not None
        if after < cut.offsets.last:
            rest = Segment(
                end=cut.offsets.last,
                rows=max(1, cut.rows - rows),
                schema_version=cut.schema_version,
                oldest_at=cut.oldest_at,
            )
            self.segments.appendleft(rest)
            self.batched = after
        self.cutting = None

    # ── what was tried ──

    def trial(self, batch: Batch) -> Trial:
        return self.trials.setdefault(batch.batch_id, Trial())

    @property
    def retries(self) -> int:
        return max((trial.retries for trial in self.trials.values()), default=0)

    def settled(self, batch: Batch) -> None:
        """The batch was delivered or parked for good, or its children took its place: forget its tries."""
        self.trials.pop(batch.batch_id, None)

    def answered(self) -> None:
        """ClickHouse did as it was told: the lane is well."""
        self.last_error, self.try_at = "", 0.0
        self.circuit, self.stopped_reason = Circuit.CLOSED, ""

    # ── what it is doing ──

    @property
    def redriving(self) -> Redrive | None:
        """The parked range that is on its way."""
        return self.sending.redrive if self.sending else None

    @property
    def may_cut(self) -> bool:
        """Whether the next range may be prepared."""
        return self.preparing is None and self.prepared is None and len(self.frozen) < FROZEN_MAX

    @property
    def may_freeze(self) -> bool:
        """Whether there is a prepared range to freeze; a frozen batch may stand there prepared for its turn."""
        prepared = self.prepared
        known = prepared is None or any(batch.offsets == prepared.offsets for batch in self.frozen)
        return not known and len(self.frozen) < FROZEN_MAX

    @property
    def idle(self) -> bool:
        """Whether nothing of it is pending or under way."""
        return not (self.segments or self.cutting or self.prepared or self.frozen or self.sending)

    def may_send(self, clock: float) -> bool:
        """Whether the main path goes on: not beside a probe, and not before a stopped table's next try."""
        return self.circuit is Circuit.CLOSED and (not self.stopped_reason or clock >= self.try_at)

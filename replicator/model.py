"""The values everything else speaks in: offsets, ranges, versions, batches, checkpoints.

Frozen, without I/O. Two kinds of position, two words: an *entry id* is Redis's, an *offset* is ours.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

import pyarrow as pa
from attrs import field, frozen
from attrs.validators import ge, gt

Offset = NewType("Offset", int)
"""A change's place in our log: 1, 2, 3 … without gaps. 0 stands before the first."""

EntryId = NewType("EntryId", str)
"""Redis's name for an entry, ``<milliseconds>-<sequence>``."""

TIMELINE_SHIFT = 48
OFFSET_MAX = (1 << TIMELINE_SHIFT) - 1
NO_ENTRY = EntryId("0-0")
GENERIC_LANE = "change_log"
"""The delivery lane, and the ClickHouse table, of changes whose table is not declared."""


class Op(StrEnum):
    """What a change did to its key."""

    CREATE = "c"
    UPDATE = "u"
    DELETE = "d"
    SNAPSHOT = "r"


def version_of(timeline: int, offset: int) -> int:
    """The number that alone decides which row is newer: ``timeline << 48 | offset``."""
    return timeline << TIMELINE_SHIFT | offset


def entry_order(entry_id: str) -> tuple[int, int]:
    """An entry id as something that sorts as Redis sorts it."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


@frozen(kw_only=True)
class OffsetRange:
    """Offsets ``first..last``, both inclusive."""

    first: int = field(validator=ge(1))
    last: int = field(validator=ge(1))

    def __attrs_post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError(f"range {self.first}..{self.last} ends before it begins")

    def __str__(self) -> str:
        return f"{self.first}..{self.last}"

    def __len__(self) -> int:
        return self.last - self.first + 1

    def contains(self, other: OffsetRange) -> bool:
        return self.first <= other.first and other.last <= self.last


@frozen(kw_only=True)
class BatchLimits:
    """A batch is cut at whichever limit it meets first."""

    rows_max: int = field(validator=gt(0))
    age_seconds_max: float = field(validator=ge(0))


@frozen(kw_only=True)
class Checksum:
    """Count, wrapping sum and xor of the 64-bit hashes of a set of rows: equal sets, equal values, in any order."""

    rows: int
    sum: int
    xor: int

    def __str__(self) -> str:
        return f"{self.rows}:{self.sum:016x}:{self.xor:016x}"

    def __add__(self, other: Checksum) -> Checksum:
        """Of both sets together."""
        return Checksum(rows=self.rows + other.rows, sum=(self.sum + other.sum) % (1 << 64), xor=self.xor ^ other.xor)

    @classmethod
    def parse(cls, text: str) -> Checksum:
        rows, total, xor = text.split(":")
        return cls(rows=int(rows), sum=int(total, 16), xor=int(xor, 16))


NOTHING = Checksum(rows=0, sum=0, xor=0)
"""Of no rows."""


CHANGE_SCHEMA = pa.schema(
    [
        ("table_name", pa.string()),
        ("op", pa.string()),
        ("key", pa.string()),
        ("payload", pa.string()),
        ("schema_version", pa.int32()),
        ("producer_schema", pa.string()),
        ("event_id", pa.string()),
        ("event_at", pa.timestamp("us")),
        ("stream", pa.string()),
        ("stream_epoch", pa.int32()),
        ("entry_id", pa.string()),
        ("entry_row", pa.int32()),
    ]
)
"""Decoded changes, columnar, in the order they were read. Instants are UTC without a zone."""

REJECTION_SCHEMA = pa.schema(
    [
        ("stream", pa.string()),
        ("stream_epoch", pa.int32()),
        ("entry_id", pa.string()),
        ("entry_row", pa.int32()),
        ("raw", pa.binary()),
        ("reason", pa.string()),
    ]
)
"""What could not be logged. ``raw`` holds the entry's field names and values in turn as netstrings: see decode.pack_raw."""


@frozen(kw_only=True)
class Batch:
    """One lane's frozen run of offsets: what is sent, again and again if need be, always the same rows."""

    batch_id: str
    lane: str
    offsets: OffsetRange
    row_count: int
    checksum: Checksum
    schema_version: int
    send_seq: int
    attempt: int = 0


class ParkReason(StrEnum):
    """Why a range stands in ``failed_syncs``."""

    OUTAGE = "outage"
    REJECTED = "rejected"
    LOST = "lost"


@frozen(kw_only=True)
class FailedSync:
    """An open row of ``failed_syncs``."""

    id: int
    lane: str
    offsets: OffsetRange
    row_count: int
    reason: ParkReason
    attempts: int
    schema_version: int = 0


@frozen(kw_only=True)
class Failure:
    """What an attempt met, as it is recorded."""

    reason: ParkReason
    code: str | None
    message: str
    attempts: int
    column: str | None = None
    """The columns at fault, where they are known, as one text."""


@frozen(kw_only=True)
class StreamPosition:
    """How far a stream is logged. ``last_entry_row`` is None when the entry is logged whole.

    ``entries_unread`` counts what was ever added to the stream and is not ours to read any more: older than our
    start, or lost in a recorded gap; None while that is not known. ``published_entry_id`` is the last position that
    Redis is known to have witnessed. Up to ``known_through`` an entry may be in the log already.
    """

    stream: str
    stream_epoch: int = 1
    last_entry_id: EntryId = NO_ENTRY
    last_entry_row: int | None = None
    entries_read: int = 0
    entries_unread: int | None = None
    published_entry_id: EntryId | None = None
    known_through: EntryId | None = None

    @property
    def behind(self) -> EntryId:
        """The id to read behind: the last entry's, or the one before it where that entry is logged in part."""
        if self.last_entry_row is None:
            return self.last_entry_id
        milliseconds, sequence = entry_order(self.last_entry_id)
        if sequence:
            return EntryId(f"{milliseconds}-{sequence - 1}")
        return EntryId(f"{milliseconds - 1}-{(1 << 64) - 1}") if milliseconds else NO_ENTRY


class GapCause(StrEnum):
    """How entries left Redis before they were read."""

    TRIMMED = "trimmed"
    DELETED = "deleted"
    FLUSHED = "flushed"
    RECREATED = "recreated"
    FAILOVER = "failover"
    RESTORED = "restored"


@frozen(kw_only=True)
class Gap:
    """Entries that left Redis before we read them. ``entries_lost`` is None where Redis cannot tell: a possible gap."""

    stream: str
    after_entry_id: EntryId | None
    before_entry_id: EntryId | None
    entries_lost: int | None
    cause: str

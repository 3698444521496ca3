"""What all encodings share: the columns of a decoded change, rejections, texts and producer times. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from attrs import define, field, frozen

from replicator.model import CHANGE_SCHEMA, REJECTION_SCHEMA

if TYPE_CHECKING:
    from replicator.decode import StreamRead

ENTRY_INDEX = pa.field("entry_index", pa.int32())
RAW_CHANGE_SCHEMA = CHANGE_SCHEMA.append(ENTRY_INDEX)
RAW_REJECTION_SCHEMA = REJECTION_SCHEMA.append(ENTRY_INDEX)
EMPTY_CHANGES = RAW_CHANGE_SCHEMA.empty_table()
EMPTY_REJECTIONS = RAW_REJECTION_SCHEMA.empty_table()


def pack_raw(fields: Sequence[bytes] | None) -> bytes:
    """An entry's field names and values in turn as netstrings (``<length>:<bytes>,``): readable and reversible."""
    return b"".join(b"%d:%b," % (len(part), part) for part in fields or ())


def pack_row(row: Mapping[str, Any]) -> bytes:
    """One decoded change in the json encoding, for a row that was part of a larger entry."""
    fields = {
        "data": row["payload"],
        "op": row["op"],
        "key": row["key"],
        "id": row["event_id"],
        "v": row["producer_schema"],
    }
    fields |= {"table": row["table_name"], "ts": None if row["event_at"] is None else row["event_at"].isoformat()}
    return pack_raw([part.encode() for name, value in fields.items() if value is not None for part in (name, value)])


def unpack_raw(raw: bytes) -> list[bytes]:
    """The field names and values that `pack_raw` packed. Raises ValueError when they are not netstrings."""
    parts, at = [], 0
    while at < len(raw):
        colon = raw.index(b":", at)
        end = colon + 1 + int(raw[at:colon])
        if raw[end : end + 1] != b",":
            raise ValueError(f"no comma after the netstring at byte {at}")
        parts.append(raw[colon + 1 : end])
        at = end + 1
    return parts


@define
class Rejections:
    """Entries (or rows of entries) of one read that cannot be logged. The first reason found for an entry stands."""

    read: StreamRead
    indexes: set[int] = field(factory=set)
    _found: list[tuple[int, int, str, bytes | None]] = field(factory=list)

    def add(self, index: int, reason: str) -> None:
        """Reject a whole entry."""
        if index not in self.indexes:
            self.indexes.add(index)
            self._found.append((index, 0, reason, None))

    def add_all(self, indexes: Iterable[int], reason: str) -> None:
        for index in indexes:
            self.add(index, reason)

    def add_row(self, index: int, row: int, reason: str, raw: bytes) -> None:
        """Reject one row of an entry that holds many; ``raw`` is that row's own."""
        self._found.append((index, row, reason, raw))

    def table(self) -> pa.Table:
        """Columns of REJECTION_SCHEMA and ``entry_index``, in the order of reading."""
        return rejection_table(self.read, self._found)


def rejection_table(read: StreamRead, found: Iterable[tuple[int, int, str, bytes | None]]) -> pa.Table:
    """Rejections from (entry index, row, reason, raw), in the order of reading; where raw is None, the raw entry."""
    rows = sorted(found, key=lambda each: each[:2])
    return pa.table(
        {
            "stream": pa.array([read.stream] * len(rows), pa.string()),
            "stream_epoch": pa.array([read.stream_epoch] * len(rows), pa.int32()),
            "entry_id": pa.array([read.ids[i].decode() for i, _, _, _ in rows], pa.string()),
            "entry_row": pa.array([row for _, row, _, _ in rows], pa.int32()),
            "raw": pa.array([pack_raw(read.fields[i]) if raw is None else raw for i, _, _, raw in rows], pa.binary()),
            "reason": pa.array([reason for _, _, reason, _ in rows], pa.string()),
            "entry_index": pa.array([i for i, _, _, _ in rows], pa.int32()),
        },
        schema=RAW_REJECTION_SCHEMA,
    )


def text_column(
    values: Sequence[bytes] | pa.BinaryArray, index: Sequence[int], name: str, rejections: Rejections
) -> pa.Array:
    """Bytes as UTF-8 texts; an entry whose value is not UTF-8 is rejected and reads as null."""
    column = values if isinstance(values, pa.Array) else pa.array(values, pa.binary())
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        for place, value in enumerate(column.to_pylist()):
            try:
                texts.append(value.decode())
            except UnicodeDecodeError as error:
                rejections.add(index[place], f"field {name!r} is not UTF-8 (byte {error.start})")
                texts.append(None)
        return pa.array(texts, pa.string())


@frozen(kw_only=True)
class Times:
    """Producer times in UTC microseconds, and (place, reason) of those that are none."""

    values: pa.Array
    misfits: Sequence[tuple[int, str]]


MILLISECONDS_MIN = 100_000_000_000  # 1973-03-03
MILLISECONDS_MAX = 10_000_000_000_000  # 2286-11-20


def parse_times(column: pa.Array | None, rows: int) -> Times:
    """Epoch milliseconds or ISO 8601 to timestamps; any other magnitude is a misfit whose reason names the unit."""
    if column is None:
        return Times(values=pa.nulls(rows, pa.timestamp("us")), misfits=())
    digits = pc.fill_null(pc.match_substring_regex(column, r"^\d{12,13}$"), False)
    if pc.all(digits).as_py():
        numbers = column.cast(pa.int64())
        if pc.min(numbers).as_py() >= MILLISECONDS_MIN and pc.max(numbers).as_py() < MILLISECONDS_MAX:
            return Times(values=pc.multiply(numbers, 1000).cast(pa.timestamp("us")), misfits=())
    return _parse_times_singly(column)


def _parse_times_singly(column: pa.Array) -> Times:
    values: list[int | None] = []
    misfits = []
    for place, value in enumerate(column.to_pylist()):
        try:
            values.append(None if value is None else time_microseconds(value))
        except ValueError as error:
            values.append(None)
            misfits.append((place, str(error)))
    return Times(values=pa.array(values, pa.int64()).cast(pa.timestamp("us")), misfits=misfits)


_TOO_FINE = re.compile(r"[.,][0-9]{7}")
"""More decimals of a second than are kept; ``fromisoformat`` drops them in silence. Source: Python 3.11."""


def time_microseconds(value: str) -> int:
    """One producer time as UTC epoch microseconds. Raises ValueError with a reason for the operator."""
    digits = value.removeprefix("-")
    if digits.isdecimal() and digits.isascii() and len(digits) <= 24:
        number = int(value)
        if MILLISECONDS_MIN <= number < MILLISECONDS_MAX:
            return number * 1000
        unit = {10: "seconds", 9: "seconds", 15: "microseconds", 16: "microseconds", 19: "nanoseconds"}.get(len(digits))
        looks = f" (it looks like {unit})" if unit else ""
        raise ValueError(f"ts {value} is not in epoch milliseconds{looks}: send milliseconds or ISO 8601")
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"ts {value[:60]!r} is neither epoch milliseconds nor ISO 8601") from None
    if _TOO_FINE.search(value):
        raise ValueError(f"ts {value[:60]!r} has nanoseconds: six decimals are the most that is kept")
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

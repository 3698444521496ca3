"""A lane's logged changes in runs of a size that one insert takes, as they are sent again. Only reads.

Guarantees: no run spans a schema version; together they hold every change of the range, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from replicator.database import Session, statement
from replicator.model import OffsetRange

WINDOWS_PER_PIECE = 4


@frozen(kw_only=True)
class Piece:
    """A run of one lane's changes of one schema version; its rows may be fewer where part of it is left out."""

    offsets: OffsetRange
    schema_version: int
    rows: int
    bytes: int


def pieces(session: Session, lane: str, offsets: OffsetRange, rows_max: int) -> Iterator[Piece]:
    """The lane's changes of a range, in the order of their offsets."""
    where = {"first": offsets.first, "last": offsets.last, "lane": lane}
    rows = session.rows(statement("pieces/windows"), {**where, "window": max(1, rows_max // WINDOWS_PER_PIECE)})
    return _joined(_windows(rows, offsets.first), rows_max)


def _windows(rows: Iterable[Sequence[int]], first: int) -> Iterator[Piece]:
    for version, end, count, size in rows:
        yield Piece(offsets=OffsetRange(first=first, last=end), schema_version=version, rows=count, bytes=size)
        first = end + 1


def _joined(windows: Iterable[Piece], rows_max: int) -> Iterator[Piece]:
    """Neighbours of one version as one piece, up to so many rows."""
    whole: Piece | None = None
    for piece in windows:
        if whole and whole.schema_version == piece.schema_version and whole.rows + piece.rows <= rows_max:
            offsets = OffsetRange(first=whole.offsets.first, last=piece.offsets.last)
            rows, size = whole.rows + piece.rows, whole.bytes + piece.bytes
            whole = Piece(offsets=offsets, schema_version=piece.schema_version, rows=rows, bytes=size)
            continue
        if whole:
            yield whole
        whole = piece
    if whole:
        yield whole


def without(offsets: OffsetRange, known: Sequence[OffsetRange]) -> Iterator[OffsetRange]:
    """What is left of a range when others, in order, are taken out."""
    first = offsets.first
    for each in known:
        if each.last < first or each.first > offsets.last:
            continue
        if each.first > first:
            yield OffsetRange(first=first, last=each.first - 1)
        first = each.last + 1
    if first <= offsets.last:
        yield OffsetRange(first=first, last=offsets.last)

"""Admitted changes of one read, which can be cut anywhere and still know the stream's position. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice

import pyarrow as pa
import pyarrow.compute as pc
from attrs import evolve, frozen

from replicator.admit import Admitted
from replicator.changelog import Origin
from replicator.decode import TRACEPARENTS_MAX, StreamRead
from replicator.decode_parts import EMPTY_CHANGES, EMPTY_REJECTIONS
from replicator.model import EntryId, Gap, StreamPosition


@frozen(kw_only=True)
class Chunk:
    """``changes`` and ``rejections`` carry ``entry_index``, the entry's place in ``ids``.

    ``start`` is where the stream stood before the read, ``end`` where it stands when this chunk is logged.
    ``more`` says that further entries were waiting when it was read.
    """

    ids: Sequence[bytes]
    start: StreamPosition
    end: StreamPosition
    changes: pa.Table
    rejections: pa.Table
    more: bool
    read_before: int = 0
    """Entries that the stream had given before this read."""
    gaps: Sequence[Gap] = ()
    repeated: int = 0
    """Changes left out because their id was logged with the same content."""
    conflicts: int = 0
    """Changes whose id was logged with another content."""
    read_at_ns: int = 0
    traceparents: Sequence[str] = ()

    @classmethod
    def turn(cls, start: StreamPosition, end: StreamPosition, gaps: Sequence[Gap]) -> Chunk:
        """A chunk that moves only the position, with the gaps that belong to it."""
        return cls(
            ids=(), start=start, end=end, changes=EMPTY_CHANGES, rejections=EMPTY_REJECTIONS, more=False, gaps=gaps
        )

    @classmethod
    def of(cls, read: StreamRead, start: StreamPosition, admitted: Admitted, *, more: bool) -> Chunk:
        end = evolve(
            start,
            last_entry_id=EntryId(read.ids[-1].decode()),
            last_entry_row=None,
            entries_read=start.entries_read + len(read.ids),
        )
        changes, rejections = admitted.changes, admitted.rejections
        return cls(
            ids=read.ids,
            start=start,
            end=end,
            changes=changes,
            rejections=rejections,
            more=more,
            read_before=start.entries_read,
        )

    @property
    def rows(self) -> int:
        return self.changes.num_rows

    @property
    def bytes(self) -> int:
        """About how much memory it holds, in bytes."""
        return self.changes.nbytes + self.rejections.nbytes

    @property
    def entries(self) -> int:
        """Entries that are logged whole with this chunk and were not with the one before."""
        return max(0, self.end.entries_read - self.start.entries_read)

    def spent(self) -> Chunk:
        """What is to be known of it once its rows are in an append."""
        return evolve(self, ids=(), changes=EMPTY_CHANGES, rejections=EMPTY_REJECTIONS)

    def cut(self, rows: int) -> tuple[Chunk, Chunk]:
        """The first ``rows`` changes with the rejections before the next change, and the rest."""
        assert 0 < rows < self.rows, f"cannot cut {self.rows} rows at {rows}"
        index, row = _place(self.changes, rows)
        partly = _place(self.changes, rows - 1)[0] == index
        middle = evolve(
            self.end,
            last_entry_id=EntryId(self.ids[index if partly else index - 1].decode()),
            last_entry_row=row - 1 if partly else None,
            entries_read=self.read_before + index,
        )
        before = _before(self.rejections, (index, row if partly else 0))
        head = evolve(
            self, end=middle, changes=self.changes.slice(0, rows), rejections=self.rejections.filter(before), more=True
        )
        tail = evolve(
            self,
            start=middle,
            changes=self.changes.slice(rows),
            rejections=self.rejections.filter(pc.invert(before)),
            repeated=0,
            conflicts=0,
            traceparents=(),
        )
        return head, tail


def _place(changes: pa.Table, row: int) -> tuple[int, int]:
    return changes["entry_index"][row].as_py(), changes["entry_row"][row].as_py()


def _before(rejections: pa.Table, place: tuple[int, int]) -> pa.ChunkedArray:
    index, row = rejections["entry_index"], rejections["entry_row"]
    same = pc.and_(pc.equal(index, place[0]), pc.less(row, place[1]))
    return pc.or_(pc.less(index, place[0]), same)


def gather(chunks: Sequence[Chunk], rows: int) -> tuple[list[Chunk], list[Chunk]]:
    """The chunks that hold the first ``rows`` changes, the last of them cut if need be, and the rest."""
    taken: list[Chunk] = []
    for place, chunk in enumerate(chunks):
        if chunk.rows <= rows:
            taken.append(chunk)
            rows -= chunk.rows
            continue
        if rows == 0:
            return taken, list(chunks[place:])
        head, tail = chunk.cut(rows)
        return [*taken, head], [tail, *chunks[place + 1 :]]
    return taken, []


def origin(chunks: Sequence[Chunk]) -> Origin:
    """What telemetry is told of chunks that are logged together."""
    entries: Counter[str] = Counter()
    for chunk in chunks:
        entries[chunk.end.stream] += chunk.entries
    sent = chain.from_iterable(chunk.traceparents for chunk in chunks)
    return Origin(
        read_at_ns=min((chunk.read_at_ns for chunk in chunks if chunk.read_at_ns), default=0),
        entries={stream: count for stream, count in entries.items() if count},
        traceparents=tuple(islice(sent, TRACEPARENTS_MAX)),
    )

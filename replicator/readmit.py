"""Rejected entries once more: decoded again with today's configuration, and logged at new offsets.

Guarantees: what is logged and the closing of its rejection are one transaction; an entry whose key has a newer change
is left alone unless the operator says so. Runs in the appending thread, between two commits. Never touches a position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen

from replicator.admit import Admitted
from replicator.changelog import Append
from replicator.database import Session, statement
from replicator.decode import StreamRead
from replicator.decode_parts import EMPTY_CHANGES, EMPTY_REJECTIONS, unpack_raw

NEWER = "its key has a newer change"


@frozen(kw_only=True)
class RejectedEntry:
    """An open row of rejected_entries."""

    id: int
    stream: str
    stream_epoch: int
    entry_id: str
    entry_row: int
    raw: bytes
    rejected_at: datetime

    @property
    def place(self) -> tuple[int, ...]:
        """Its place in its stream."""
        return (self.stream_epoch, *map(int, self.entry_id.split("-")), self.entry_row)


@frozen(kw_only=True)
class Readmission:
    """What becomes of some rejected entries: ``append`` logs those that fit now; ``kept`` says why of the others."""

    append: Append
    kept: Mapping[int, str]


def open_entries(session: Session, ids: Sequence[int]) -> list[RejectedEntry]:
    """Those of the entries that are still open, in the order of their streams."""
    names = ("id", "stream", "stream_epoch", "entry_id", "entry_row", "raw", "rejected_at")
    rows = session.rows(statement("readmit/open"), {"ids": list(ids)})
    entries = [RejectedEntry(**dict(zip(names, row, strict=True))) for row in rows]
    return sorted(entries, key=lambda entry: (entry.stream, entry.place))


def readmission(
    session: Session, entries: Sequence[RejectedEntry], admit: Callable[[StreamRead], Admitted], *, as_new: bool
) -> Readmission:
    """What to log of the entries, and why the others stay rejected. Only reads."""
    kept: dict[int, str] = {}
    changes, rejections, closed = [], [], []
    for group in _groups(entries, kept):
        admitted = admit(_read(group))
        refused = _reasons(admitted, group)
        newer = set() if as_new else _overtaken(session, admitted.changes, group)
        fit = set(pc.unique(admitted.changes["entry_index"]).to_pylist()) - newer
        for index, (entry, _) in enumerate(group):
            if index in fit:
                closed.append(entry.id)
            else:
                kept[entry.id] = NEWER if index in newer else refused.get(index, "it holds no change")
        mine = pa.array(sorted(fit), pa.int32())
        changes.append(_placed(admitted.changes.filter(pc.is_in(admitted.changes["entry_index"], mine)), group))
        rejections.append(admitted.rejections.filter(pc.is_in(admitted.rejections["entry_index"], mine)))
    append = Append(
        changes=pa.concat_tables([EMPTY_CHANGES, *changes]).combine_chunks(),
        rejections=pa.concat_tables([EMPTY_REJECTIONS, *rejections]),
        positions=(),
        readmitted=tuple(closed),
    )
    return Readmission(append=append, kept=kept)


Group = Sequence[tuple[RejectedEntry, list[bytes]]]
"""Entries of one stream, with their fields."""


def _groups(entries: Sequence[RejectedEntry], kept: dict[int, str]) -> list[Group]:
    """Entries that are read alike: whole ones, and single rows of larger ones, which were kept in the json encoding."""
    groups: dict[tuple[str, int, bool], list[tuple[RejectedEntry, list[bytes]]]] = defaultdict(list)
    for entry in entries:
        try:
            fields = unpack_raw(entry.raw)
        except ValueError as error:
            kept[entry.id] = f"its raw bytes cannot be read: {error}"
        else:
            groups[entry.stream, entry.stream_epoch, b"batch" in fields[::2]].append((entry, fields))
    return list(groups.values())


def _read(group: Group) -> StreamRead:
    first = group[0][0]
    return StreamRead(
        stream=first.stream,
        stream_epoch=first.stream_epoch,
        ids=[entry.entry_id.encode() for entry, _ in group],
        fields=[fields for _, fields in group],
    )


def _reasons(admitted: Admitted, group: Group) -> dict[int, str]:
    """By place in the group why it was refused again."""
    found = admitted.rejections.select(["entry_index", "reason"]).to_pydict()
    pairs = list(zip(found["entry_index"], found["reason"], strict=True))
    return {index: reason for index, reason in reversed(pairs) if index < len(group)}


def _placed(changes: pa.Table, group: Group) -> pa.Table:
    """The changes under the rows that they had in their entries."""
    if not changes.num_rows or b"batch" in group[0][1][::2]:
        return changes
    rows = pa.array([entry.entry_row for entry, _ in group], pa.int32()).take(changes["entry_index"].combine_chunks())
    return changes.set_column(changes.schema.get_field_index("entry_row"), "entry_row", rows)


def _overtaken(session: Session, changes: pa.Table, group: Group) -> set[int]:
    """Places of entries of which some key has a newer change in the log."""
    if not changes.num_rows:
        return set()
    at = pa.array([entry.rejected_at for entry, _ in group], pa.timestamp("us"))
    rows = _placed(changes, group).select(
        ["table_name", "key", "stream", "stream_epoch", "entry_id", "entry_row", "entry_index"]
    )
    rows = rows.append_column("rejected_at", at.take(changes["entry_index"].combine_chunks()))
    with session.relation(readmitted=rows):
        return {index for (index,) in session.rows(statement("readmit/overtaken"))}

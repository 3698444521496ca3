"""The append-only change log: append and read by offset.

Guarantees: offsets are handed out by the one writer inside the transaction that stores the changes, together
with the streams' positions and the rejected entries; nothing burns an offset. Never updates a logged change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

import numpy as np
import pyarrow as pa
from attrs import define, field, frozen

from replicator.database import Database, Session, now, statement
from replicator.errors import LogCorrupt
from replicator.model import EntryId, Gap, OffsetRange, StreamPosition, version_of


@frozen(kw_only=True)
class Origin:
    """What telemetry is told of a transaction's entries: how many of each stream, when the first was read (epoch
    nanoseconds), and a few of the W3C trace contexts that producers sent with them."""

    read_at_ns: int
    entries: Mapping[str, int]
    traceparents: tuple[str, ...] = ()


@frozen(kw_only=True)
class Append:
    """What one transaction stores: changes and rejections in the order read, where the streams stand then, and gaps.

    ``claims_ids``: the changes' idempotency keys are claimed with them.
    """

    changes: pa.Table
    rejections: pa.Table
    positions: tuple[StreamPosition, ...]
    readmitted: tuple[int, ...] = ()
    """Rejected entries that these changes are: they are closed with it."""
    gaps: tuple[Gap, ...] = ()
    claims_ids: bool = False
    origin: Origin | None = None


@define
class Pins:
    """Who reads the log in several steps, while nothing of it may be deleted."""

    _held: list[str] = field(factory=list)
    _lock: threading.Lock = field(factory=threading.Lock)

    @contextmanager
    def hold(self, who: str) -> Iterator[None]:
        """Waits for a deletion under way, never for another reader."""
        with self._lock:
            self._held.append(who)
        try:
            yield
        finally:
            with self._lock:
                self._held.remove(who)

    @contextmanager
    def unless_held(self) -> Iterator[str | None]:
        """Who holds it; where that is nobody, nobody can until the end of the block."""
        with self._lock:
            yield self._held[0] if self._held else None


@define
class ChangeLog:
    """The log's writer and reader. One thread appends; any thread may read with a session of its own."""

    database: Database
    timeline: int
    head: int = field(default=0)
    """The last offset that is durable."""
    oldest: int = field(default=1)
    """The first offset that it still holds; one above the head where it holds none."""
    pins: Pins = field(factory=Pins)

    @classmethod
    def open(cls, database: Database) -> ChangeLog:
        """Attach to the file's log. Raises LogCorrupt when its offsets have a hole at the end."""
        session = database.session()
        timeline, head, oldest = _ends(session)
        session.close()
        return cls(database=database, timeline=timeline, head=head, oldest=oldest)

    def reread(self, session: Session) -> None:
        """Ask the file where the log ends: a commit that failed may be durable all the same. Raises as `open` does."""
        self.timeline, self.head, self.oldest = _ends(session)

    def append(
        self,
        session: Session,
        append: Append,
        *,
        logged_at: datetime | None = None,
        may_log: Callable[[], None] = lambda: None,
    ) -> OffsetRange | None:
        """Store changes, rejections and positions in one durable transaction; ``may_log`` may stop it before it commits.

        Returns the offsets given, None when there were no changes. On any error nothing was stored.
        """
        rows = append.changes.num_rows
        at = logged_at or now()
        with session.transaction():
            if rows:
                with session.relation(new_changes=self._numbered(append.changes)):
                    session.execute(
                        statement("changelog/append"), {"base": version_of(self.timeline, 0), "logged_at": at}
                    )
                    if append.claims_ids and append.changes["event_id"].null_count < rows:
                        session.execute(statement("dedup/claim"), {"logged_at": at})
            if append.rejections.num_rows:
                with session.relation(new_rejections=append.rejections):
                    session.execute(statement("changelog/reject"), {"rejected_at": at})
            if append.readmitted:
                session.execute(statement("changelog/close_rejected"), {"ids": list(append.readmitted)})
            store_positions(session, append.positions, at)
            for gap in append.gaps:
                row = [gap.stream, gap.after_entry_id, gap.before_entry_id, gap.entries_lost, gap.cause, at]
                session.execute(statement("changelog/record_gap"), row)
            may_log()
        if not rows:
            return None
        self.head += rows
        return OffsetRange(first=self.head - rows + 1, last=self.head)

    def _numbered(self, changes: pa.Table) -> pa.Table:
        offsets = np.arange(self.head + 1, self.head + 1 + changes.num_rows, dtype=np.int64)
        return changes.append_column("log_offset", pa.array(offsets))

    def positions(self, session: Session) -> dict[str, StreamPosition]:
        """Where every stream stands."""
        return {row[0]: _position(row) for row in session.rows(statement("changelog/positions"))}


def _ends(session: Session) -> tuple[int, int, int]:
    """The timeline, the head and the first offset. Raises LogCorrupt when the last offsets have a hole, or one of them stands twice."""
    timeline, head, rows, tail_first, oldest = session.row(statement("changelog/ends")) or (1, 0, 0, 0, 1)
    if head and rows != head - tail_first + 1:
        raise LogCorrupt(
            f"the log holds {rows} changes in offsets {tail_first}..{head}",
            hint="keep the file and rebuild it with `replicator restore`",
        )
    return int(timeline), int(head), int(oldest)


def store_positions(session: Session, positions: Iterable[StreamPosition], at: datetime) -> None:
    """Replace the positions of these streams. Call inside a transaction."""
    for p in positions:
        session.execute("delete from stream_positions where stream = ?", [p.stream])
        row = [p.stream, p.stream_epoch, p.last_entry_id, p.last_entry_row, p.entries_read, at]
        witness = [p.entries_unread, p.published_entry_id, p.known_through]
        session.execute(statement("changelog/store_position"), [*row, *witness])


def _position(row: tuple[str, int, str, int | None, int, int | None, str | None, str | None]) -> StreamPosition:
    stream, epoch, entry_id, entry_row, read, unread, published, known = row
    return StreamPosition(
        stream=stream,
        stream_epoch=epoch,
        last_entry_id=EntryId(entry_id),
        last_entry_row=entry_row,
        entries_read=read,
        entries_unread=unread,
        published_entry_id=None if published is None else EntryId(published),
        known_through=None if known is None else EntryId(known),
    )

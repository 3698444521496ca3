"""The log went back: an old copy of the file, a torn WAL. What it lost is fetched from ClickHouse before anything is appended.

Guarantees: no offset that was ever used is given to another change; what the sink holds comes back at its own offset
and version, what nobody holds becomes a void row; the rest is read from Redis again, and skipped where it was fetched.
One transaction. Never takes the sink's word where the log has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import structlog
from attrs import define, evolve, field, frozen

from replicator.changelog import ChangeLog, store_positions
from replicator.database import Session, now, statement
from replicator.log_columns import GENERIC
from replicator.model import NO_ENTRY, NOTHING, EntryId, StreamPosition, entry_order, version_of
from replicator.refetch import LOG_COLUMNS, as_logged, held_changes_sql, put_back
from replicator.standing import LaneStanding, Recorded, SinkStanding, offset_column
from replicator.witness import StreamDescription

WINDOW_OFFSETS = 100_000
VOID_VERSION = -1
"""The schema version of a void row: no lane's, so that it is neither folded nor delivered."""

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class Witnesses:
    """What others know of this log. ``published`` is Redis's (timeline, head); ``lanes`` is empty where none was asked."""

    published: tuple[int, int] | None
    streams: Mapping[str, StreamDescription]
    lanes: Mapping[str, LaneStanding] = field(factory=dict)

    def top(self, timeline: int) -> int:
        """The highest offset that anybody has seen used on this timeline or a later one."""
        heads = [standing.top for standing in self.lanes.values()]
        if self.published is not None and self.published[0] >= timeline:
            heads.append(self.published[1])
        return max(heads, default=0)

    @property
    def timeline(self) -> int:
        return max([self.published[0] if self.published else 0, *(s.timeline for s in self.lanes.values())])

    def stand_beyond(self, timeline: int, head: int, positions: Mapping[str, StreamPosition]) -> bool:
        """Whether this log has lost what they have seen."""
        return self.timeline > timeline or self.top(timeline) > head or bool(self.read_beyond(positions))

    def read_beyond(self, positions: Mapping[str, StreamPosition]) -> list[str]:
        """Streams whose group stands beyond our position."""
        return [
            stream
            for stream, about in self.streams.items()
            if about.group_entry_id is not None
            and entry_order(about.group_entry_id) > entry_order(_behind(positions, stream))
        ]


def _behind(positions: Mapping[str, StreamPosition], stream: str) -> EntryId:
    """How far the log knows the stream: read, or to be read again since it went back."""
    if stream not in positions:
        return NO_ENTRY
    return _later(positions[stream].known_through, positions[stream].behind)


@define
class LogReturn:
    """Brings one log up to what its witnesses have seen. Call before anything is appended or sent."""

    session: Session
    changelog: ChangeLog
    sink: SinkStanding
    witnesses: Witnesses
    known_version: Callable[[str, int], int]
    """The schema version to log a table's change under: its own where that is known here."""
    failed_table: str = "failed_syncs"
    begin_at: int = 1
    """The first offset to fetch where the log is empty: what lies before it is nowhere any more, and that is known."""
    watch: Callable[[int], None] = lambda _: None
    """Told of the offsets just fetched or voided."""
    fetched: int = field(default=0, init=False)
    voided: int = field(default=0, init=False)

    def heal(self) -> None:
        """Fetch, void, and go on above everything that was ever used, on a new timeline."""
        head = self.changelog.head
        top = max(head, self.witnesses.top(self.changelog.timeline))
        timeline = max(self.changelog.timeline, self.witnesses.timeline) + 1
        at = now()
        log.error("log_went_back", head=head, top=top, timeline=timeline)
        with self.session.transaction():
            for first in range(max(head + 1, self.begin_at), top + 1, WINDOW_OFFSETS):
                window = self._window(first, min(top, first + WINDOW_OFFSETS - 1))
                put_back(self.session, window)
                self.watch(window.num_rows)
            self.session.execute(statement("log_return/claim_fetched"), {"head": head})
            store_positions(self.session, self._positions(head), at)
            for standing in self.witnesses.lanes.values():
                self._take_ledger(standing)
            self.session.execute(statement("log_return/begin_unknown_lanes"), {"at": at})
            self.session.execute("delete from meta where key = 'timeline'")
            self.session.execute("insert into meta values ('timeline', ?)", [str(timeline)])
            row = [at, head, top, timeline, self.fetched, self.voided]
            self.session.execute(statement("log_return/record"), row)
        self.changelog.head, self.changelog.timeline = top, timeline
        for standing in self.witnesses.lanes.values():
            if self.sink.recorded(standing.lane, after=standing.agreed):
                self.sink.forget_behind(standing.lane, standing.agreed)
        log.warning("log_healed", fetched=self.fetched, voided=self.voided, head=top, timeline=timeline)

    # ── changes ──

    def _window(self, first: int, last: int) -> pa.Table:
        """Every offset of a window: as the sink holds it, or void."""
        parts = [
            self._held(standing, first, last) for standing in self.witnesses.lanes.values() if standing.top >= first
        ]
        found = pa.concat_tables(parts) if parts else _SCHEMA.empty_table()
        missing = np.setdiff1d(np.arange(first, last + 1, dtype=np.int64), found["log_offset"].to_numpy())
        self.fetched += found.num_rows
        self.voided += len(missing)
        return pa.concat_tables([found, void_rows(missing, self.changelog.timeline)]).sort_by("log_offset")

    def _held(self, standing: LaneStanding, first: int, last: int) -> pa.Table:
        condition = f"{offset_column(standing.lane)} between {first:d} and {last:d}"
        sql = held_changes_sql(standing.lane, standing.target, condition)
        held = as_logged(self.sink.sink.arrow(sql, {"pipeline": self.sink.pipeline}))
        names, versions = held["table_name"].to_pylist(), held["schema_version"].to_pylist()
        known = {pair: self.known_version(*pair) for pair in set(zip(names, versions, strict=True))}
        mapped = [known[pair] for pair in zip(names, versions, strict=True)]
        place = held.schema.get_field_index("schema_version")
        return held.set_column(place, "schema_version", pa.array(mapped, pa.int32()))

    # ── positions ──

    def _positions(self, head: int) -> list[StreamPosition]:
        """Where to read on: behind what the log had itself, or, where Redis has it no more, behind what was fetched."""
        mine = self.changelog.positions(self.session)
        rows = self.session.rows(statement("log_return/fetched_streams"), {"head": head})
        found = {stream: (epoch, EntryId(last)) for stream, epoch, last in rows}
        streams = found.keys() | set(self.witnesses.read_beyond(mine))
        return [self._position(mine.get(s) or StreamPosition(stream=s), found.get(s), head) for s in sorted(streams)]

    def _position(self, mine: StreamPosition, found: tuple[int, EntryId] | None, head: int) -> StreamPosition:
        about = self.witnesses.streams.get(mine.stream) or StreamDescription(exists=False)
        epoch, last = found or (mine.stream_epoch, NO_ENTRY)
        start = mine
        if epoch > mine.stream_epoch:
            start = StreamPosition(stream=mine.stream, stream_epoch=epoch)
        known = _later(about.group_entry_id, _later(mine.known_through, last))
        start = evolve(start, published_entry_id=None, known_through=known)
        where = {"stream": mine.stream, "epoch": epoch, "head": head, "after": _number(start.behind)}
        limit = _number(about.first_entry_id) if about.first_entry_id else str((1 << 127) - 1)
        row = self.session.row(statement("log_return/gone_entries"), {**where, "before": limit})
        entries, reached = row or (0, None)
        if not entries:
            return start
        read = start.entries_read + entries
        return evolve(start, last_entry_id=EntryId(reached), last_entry_row=None, entries_read=read)

    # ── what was delivered meanwhile ──

    def _take_ledger(self, standing: LaneStanding) -> None:
        """What the ledger's union records counts as delivered; what it says was parked is parked here too."""
        row = self.session.row(
            "select coalesce(max(last_offset), 0) from sync_batches where table_name = ? and delivered_at is not null",
            [standing.lane],
        )
        delivered = row[0] if row else 0
        if standing.agreed <= delivered:
            return
        recorded = [r for r in self.sink.recorded(standing.lane, after=delivered) if r.last <= standing.agreed]
        self.session.execute(
            "delete from sync_batches where table_name = ? and last_offset > ?", [standing.lane, delivered]
        )
        for each in recorded:
            self._insert_batch(standing.lane, each)
        self.session.execute("delete from checkpoints where table_name = ?", [standing.lane])
        self.session.execute("insert into checkpoints values (?, ?, ?)", [standing.lane, standing.agreed, now()])

    def _insert_batch(self, lane: str, recorded: Recorded) -> None:
        """Of a parked range that nobody holds any more nothing was delivered, and nothing is left to deliver."""
        where = {"lane": lane, "first": recorded.first, "last": recorded.last}
        about = {"rows": recorded.row_count, "checksum": recorded.checksum, "send_seq": recorded.send_seq}
        at = recorded.delivered_at.replace(tzinfo=None)
        if recorded.status == "parked":
            sql = statement("log_return/take_parked", self.failed_table)
            if not self.session.rows(sql, {**where, "at": at}):
                about["checksum"] = str(NOTHING)
        self.session.execute(statement("log_return/take_batch"), {**where, **about, "at": at})


_SCHEMA = pa.schema([(column.name, column.arrow) for column in GENERIC])


def void_rows(offsets: Sequence[int] | np.ndarray, timeline: int) -> pa.Table:
    """Rows that keep the offsets whole where nobody holds the change any more."""
    count, at = len(offsets), now()
    fixed = {
        "table_name": "", "op": "v", "schema_version": VOID_VERSION, "logged_at": at,
        "stream": "", "stream_epoch": 0, "entry_id": NO_ENTRY, "entry_row": 0,
    }  # fmt: skip
    columns = {
        field.name: pa.repeat(pa.scalar(fixed.get(field.name), field.type), count)
        for field in _SCHEMA
    }  # fmt: skip
    columns["log_offset"] = pa.array(offsets, pa.int64())
    versions = np.asarray(offsets, dtype=np.uint64) + np.uint64(version_of(timeline, 0))
    columns["version"] = pa.array(versions, pa.uint64())
    return pa.table({name: columns[name] for name in LOG_COLUMNS}, schema=_SCHEMA)


def _later(one: EntryId | None, other: EntryId) -> EntryId:
    return max(one or NO_ENTRY, other, key=entry_order)


def _number(entry_id: EntryId) -> str:
    milliseconds, sequence = entry_order(entry_id)
    return str(milliseconds << 64 | sequence)

"""Restore: the DuckDB file is gone. The log, the streams' positions and the delivery records come back from ClickHouse.

Guarantees: what was delivered is logged again as it was, at its own offset and version; what only the lost file can
have had is said, exactly where that can be known, as a window of entry ids where not. Works on an empty file only, and
takes the pipeline over from the lost one's instance deliberately. Never writes to ClickHouse but its ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog
from attrs import define, field, frozen

from replicator.changelog import ChangeLog
from replicator.controls import record_action
from replicator.database import Session, now, statement
from replicator.errors import UsageError
from replicator.log_return import WINDOW_OFFSETS, LogReturn, Witnesses
from replicator.model import GENERIC_LANE, NO_ENTRY, EntryId, Gap, entry_order
from replicator.schema import quote_clickhouse
from replicator.standing import LaneStanding, SinkStanding, offset_column
from replicator.witness import StreamDescription

NOT_RESTORED = (
    "rejected_entries (those that Redis still holds are rejected again)",
    "failed_syncs that were resolved or discarded, and notes on them",
    "operator_actions, replays, rebuilds, acknowledged gaps",
    "idempotency keys of what was rejected or never delivered",
)
"""What no other place has."""
PLACED = "log_offset, op, stream, stream_epoch, entry_id"

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class StreamLoss:
    """What of one stream may be gone for good: entries behind ``after`` and before ``before`` that Redis has trimmed.

    ``undelivered_gone`` None: it cannot be known. ``entries_without_trace``: entries that Redis no longer holds and
    ClickHouse never had: undelivered, rejected, repeated, or older than the pipeline's start; None where Redis does not count.
    """

    stream: str
    delivered_entries: int
    last_delivered: EntryId | None
    after: EntryId | None
    before: EntryId | None
    possible: bool
    entries_without_trace: int | None

    def as_json(self) -> dict[str, Any]:
        return {
            "stream": self.stream,
            "entries_delivered": self.delivered_entries,
            "last_delivered_entry_id": self.last_delivered,
            "undelivered_may_be_gone": self.possible,
            "after_entry_id": self.after if self.possible else None,
            "before_entry_id": self.before if self.possible else None,
            "entries_without_trace": self.entries_without_trace,
        }


@frozen(kw_only=True)
class Restored:
    """What came back, and what did not. ``voids`` are offsets that had been logged and were never delivered."""

    head: int
    first: int
    timeline: int
    fetched: int
    voids: tuple[tuple[int, int], ...]
    head_known: bool
    """Whether Redis knew how far the lost log had come: then ``voids`` are exactly what was undelivered."""
    streams: tuple[StreamLoss, ...]

    @property
    def undelivered(self) -> int:
        return sum(last - first + 1 for first, last in self.voids)

    def as_json(self) -> dict[str, Any]:
        return {
            "head_offset": self.head,
            "first_offset": self.first,
            "timeline": self.timeline,
            "changes_restored": self.fetched,
            "changes_undelivered": self.undelivered if self.head_known else None,
            "undelivered_offsets": [list(run) for run in self.voids],
            "streams": [stream.as_json() for stream in self.streams],
            "not_restored": list(NOT_RESTORED),
        }


@define(kw_only=True)
class Restorer:
    """Fills one empty file. ``describe`` and ``published_head`` ask Redis; ``ttl`` says that ClickHouse lets old rows go."""

    session: Session
    changelog: ChangeLog
    sink: SinkStanding
    published_head: Callable[[], tuple[int, int] | None]
    describe: Callable[[str], StreamDescription]
    streams: Callable[[], tuple[str, ...]]
    known_version: Callable[[str, int], int]
    failed_table: str
    ttl: bool
    await_stillness: Callable[[], None]
    watch: Callable[[int], None] = lambda _: None
    witnesses: Witnesses = field(init=False)

    def look(self) -> dict[str, Any]:
        """What there is to restore. Raises UsageError where the file has something of its own, or nothing is there."""
        if self.changelog.head or self.changelog.positions(self.session):
            raise UsageError(
                f"the file holds a log up to offset {self.changelog.head}: a restore fills an empty one only",
                hint="`replicator run` by itself brings an old copy up to date; else move the file away first",
            )
        self.await_stillness()
        lanes = self.sink.lanes()
        about = {stream: self.describe(stream) for stream in self.streams()}
        self.witnesses = Witnesses(published=self.published_head(), streams=about, lanes=lanes)
        rows = sum(standing.rows_held for standing in lanes.values())
        top = self.witnesses.top(0)
        if not top:
            raise UsageError(
                f"neither ClickHouse nor Redis knows of pipeline {self.sink.pipeline!r}: there is nothing to restore",
                hint="check [pipeline] name, [clickhouse] database and the endpoint; a new pipeline just runs",
            )
        return {
            "head_offset": top,
            "first_offset": self._begin_at(),
            "published_head": self.witnesses.published[1] if self.witnesses.published else None,
            "rows_recorded": rows,
            "tables": [
                {"table": lane, "delivered_through": standing.agreed, "top_offset": standing.top}
                for lane, standing in lanes.items()
                if standing.top
            ],
        }

    def _begin_at(self) -> int:
        """Where ClickHouse lets old rows go, the log begins with the oldest that is left."""
        lows = [standing.low for standing in self.witnesses.lanes.values() if standing.low]
        return min(lows, default=1) if self.ttl else 1

    def foresee(self) -> Restored:
        """What `restore` would bring back and what it would find lost, by offsets and entry ids alone. Call after `look`.

        Writes nothing but a temporary table.
        """
        first, top = self._begin_at(), self.witnesses.top(0)
        self.session.execute("create or replace temp table foreseen as select " + PLACED + " from change_log limit 0")
        for begin in range(first, top + 1, WINDOW_OFFSETS):
            end = min(top, begin + WINDOW_OFFSETS - 1)
            for standing in self.witnesses.lanes.values():
                if standing.top >= begin:
                    self._place(standing, begin, end)
            self.session.execute(statement("restore/place_voids"), {"first": begin, "last": end})
        [(fetched,)] = self.session.rows("select count(*) from foreseen where op <> 'v'")
        return self._found(first=first, head=top, timeline=self.witnesses.timeline + 1, fetched=fetched, log="foreseen")

    def _place(self, standing: LaneStanding, first: int, last: int) -> None:
        """Where the sink's changes of a window would stand."""
        column = offset_column(standing.lane)
        own = "" if standing.lane == GENERIC_LANE else "_"
        names = ", ".join(column if name == "log_offset" else f"{own}{name}" for name in PLACED.split(", "))
        sql = (
            f"select {names} from {quote_clickhouse(standing.target)} final "
            f"where _pipeline = {{pipeline:String}} and {column} between {{first:Int64}} and {{last:Int64}}"
        )
        where = {"pipeline": self.sink.pipeline, "first": first, "last": last}
        held = self.sink.sink.arrow(sql, where).rename_columns(PLACED.split(", "))
        with self.session.relation(held_places=held):
            self.session.execute(statement("restore/place"))
        self.watch(held.num_rows)

    def restore(self, *, actor: str) -> Restored:
        """Call after `look`, with the pipeline owned. One transaction: after a kill the file is empty as before."""
        first = self._begin_at()
        healing = LogReturn(
            session=self.session,
            changelog=self.changelog,
            sink=self.sink,
            witnesses=self.witnesses,
            known_version=self.known_version,
            failed_table=self.failed_table,
            begin_at=first,
            watch=self.watch,
        )
        healing.heal()
        head, timeline = self.changelog.head, self.changelog.timeline
        restored = self._found(first=first, head=head, timeline=timeline, fetched=healing.fetched, log="change_log")
        self._record(restored, actor)
        return restored

    def _found(self, *, first: int, head: int, timeline: int, fetched: int, log: str) -> Restored:
        """``log`` is the table that has the offsets: the log, or what would be in it."""
        exact = self.witnesses.published is not None
        return Restored(
            head=head,
            first=first,
            timeline=timeline,
            fetched=fetched,
            voids=tuple(self.session.rows(statement("restore/voids").replace("change_log", log))),
            head_known=exact,
            streams=tuple(self._losses(log, exact=exact)),
        )

    def _losses(self, log: str, *, exact: bool) -> list[StreamLoss]:
        found = self.session.rows(f"select distinct stream from {log} where op <> 'v'")
        names = sorted({stream for (stream,) in found} | set(self.witnesses.streams))
        voided = self.session.row(f"select 1 from {log} where op = 'v' limit 1") is not None
        return [self._loss(log, stream, undelivered=voided or not exact) for stream in names]

    def _loss(self, log: str, stream: str, *, undelivered: bool) -> StreamLoss:
        about = self.witnesses.streams.get(stream) or self.describe(stream)
        first = about.first_entry_id
        where = {"stream": stream, "before": _number(first) if first else str((1 << 127) - 1)}
        row = self.session.row(statement("restore/streams").replace("change_log", log), where) or (0, 0, None, None)
        delivered, below, last, after = row
        trimmed = about.last_entry_id if first is None else first
        begins = after or NO_ENTRY
        possible = undelivered and (not about.exists or entry_order(trimmed) > entry_order(begins))
        if first is not None and about.entries_added is not None:
            possible = possible and about.entries_added - about.length > below
        counted = None if about.entries_added is None else about.entries_added - about.length - below
        return StreamLoss(
            stream=stream,
            delivered_entries=delivered,
            last_delivered=EntryId(last) if last else None,
            after=EntryId(begins),
            before=first,
            possible=possible,
            entries_without_trace=None if counted is None else max(0, counted),
        )

    def _record(self, restored: Restored, actor: str) -> None:
        """What may be gone for good is a gap until somebody has looked at it."""
        at = now()
        with self.session.transaction():
            for loss in restored.streams:
                if loss.possible:
                    gap = Gap(
                        stream=loss.stream,
                        after_entry_id=loss.after,
                        before_entry_id=loss.before,
                        entries_lost=None,
                        cause="restored",
                    )
                    row = [gap.stream, gap.after_entry_id, gap.before_entry_id, gap.entries_lost, gap.cause, at]
                    self.session.execute(statement("changelog/record_gap"), row)
            effect = f"{restored.fetched} changes from ClickHouse, {restored.undelivered} offsets undelivered"
            record_action(self.session, actor, "restore", self.sink.pipeline, effect)
        log.warning("restored", fetched=restored.fetched, undelivered=restored.undelivered, head=restored.head)


def take_schemas(session: Session, rows: Mapping[tuple[str, int], tuple[str, bool]]) -> None:
    """How tables were declared, by (table, version), into a file that knows of none."""
    with session.transaction():
        for (table, version), (text, rebuilt) in rows.items():
            session.execute(statement("catalog/add_schema"), [table, version, text, now(), rebuilt])


def _number(entry_id: EntryId) -> str:
    milliseconds, sequence = entry_order(entry_id)
    return str(milliseconds << 64 | sequence)

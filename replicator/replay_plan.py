"""What a replay would send: which ranges of which tables, how much that is, and whether it is safe. Only reads.

Guarantees: nothing beyond a table's checkpoint and nothing that is parked or discarded is part of a plan; what stands
against sending is named before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import define, field, frozen
from attrs.validators import ge, gt, optional

from replicator.catalog import Catalog
from replicator.database import Session, statement
from replicator.errors import SinkMisshapen, UsageError
from replicator.lanes import Lane
from replicator.model import GENERIC_LANE, OffsetRange
from replicator.pieces import Piece, pieces
from replicator.schema import quote_clickhouse
from replicator.sink import ClickHouseSink


@frozen(kw_only=True)
class ReplayRequest:
    """``first`` and ``last`` are offsets or ISO 8601 instants; ``last`` None: up to the checkpoint. ``rate`` is rows/s."""

    first: str
    last: str | None = None
    tables: tuple[str, ...] = ()
    rate: float | None = field(default=None, validator=optional(gt(0)))


@frozen(kw_only=True)
class TablePlan:
    """One table's part. ``known_rows`` are left out: parked or discarded; ``held_rows`` stand in the sink already."""

    table: str
    first: int
    last: int
    pieces: tuple[Piece, ...] = ()
    known: tuple[OffsetRange, ...] = ()
    known_rows: int = 0
    held_rows: int = field(default=0, validator=ge(0))
    conflicts: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces) - self.known_rows

    def as_json(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "first_offset": self.first,
            "last_offset": self.last,
            "batches": len(self.pieces),
            "rows": self.rows,
            "bytes": sum(piece.bytes for piece in self.pieces),
            "rows_in_sink": self.held_rows,
            "rows_left_out": self.known_rows,
            "conflicts": list(self.conflicts),
        }


@frozen(kw_only=True)
class ReplayPlan:
    """``conflicts`` are those that no single table has."""

    tables: tuple[TablePlan, ...]
    conflicts: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def problems(self) -> list[str]:
        return [*self.conflicts, *(f"{t.table}: {text}" for t in self.tables for text in t.conflicts)]

    def as_json(self) -> dict[str, Any]:
        return {
            "safe": not self.problems,
            "rows": self.rows,
            "tables": [table.as_json() for table in self.tables],
            "conflicts": list(self.conflicts),
        }


@define
class Planner:
    """Plans with a session of its own. ``batch_rows`` bounds a piece."""

    session: Session
    sink: ClickHouseSink
    catalog: Catalog
    pipeline: str
    failed_table: str
    batch_rows: int

    def plan(self, request: ReplayRequest) -> ReplayPlan:
        """Raises UsageError for a table, an offset or an instant that is none, SinkUnavailable where it cannot tell."""
        positions = dict(self.session.rows("select table_name, log_offset from checkpoints"))
        names = self._names(request, positions)
        oldest, head = self.session.row("select min(log_offset), max(log_offset) from change_log") or (None, None)
        if oldest is None:
            raise UsageError("the log is empty: there is nothing to send again")
        first = max(1, self._offset(request.first, "first"))
        last = head if request.last is None else self._offset(request.last, "last")
        if first > last:
            raise UsageError(f"from {request.first} to {request.last or 'the checkpoint'} there is nothing")
        gone = (f"offsets {first}..{oldest - 1} have left the log",) if first < oldest else ()
        start = max(first, oldest)
        tables = [self._table(name, start, min(last, positions.get(name, 0))) for name in names]
        return ReplayPlan(tables=tuple(tables), conflicts=gone)

    def _names(self, request: ReplayRequest, positions: Mapping[str, int]) -> tuple[str, ...]:
        known = tuple(dict.fromkeys([*self.catalog.current, *positions, GENERIC_LANE]))
        unknown = [name for name in request.tables if name not in known]
        if unknown:
            raise UsageError(f"there is no table {', '.join(unknown)}", hint=f"there are {', '.join(known)}")
        return request.tables or tuple(name for name in known if name in positions)

    def _offset(self, text: str, what: str) -> int:
        """The offset meant by a number, or the first logged from an instant on, or the last logged by it."""
        if text.isdecimal():
            return int(text)
        try:
            at = datetime.fromisoformat(text)
        except ValueError as error:
            hint = "give 12345 or 2026-11-23T10:00:00Z"
            raise UsageError(f"{text!r} is neither an offset nor an instant", hint=hint) from error
        at = at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at
        sql = {
            "first": "select min(log_offset) from change_log where logged_at >= ?",
            "last": "select max(log_offset) from change_log where logged_at <= ?",
        }[what]
        [found] = self.session.row(sql, [at]) or (None,)
        if found is None:
            raise UsageError(f"nothing was logged {'from' if what == 'first' else 'up to'} {text}")
        return int(found)

    # ── one table ──

    def _table(self, name: str, first: int, last: int) -> TablePlan:
        """A table that has delivered nothing of the range has an empty part."""
        lane = self.catalog.lane(name, 0)
        if last < first:
            return TablePlan(table=name, first=first, last=first - 1)
        known = tuple(self._known(name, first, last))
        conflicts = self.catalog.conflicts(self.sink, lane)
        return TablePlan(
            table=name,
            first=first,
            last=last,
            pieces=tuple(pieces(self.session, name, OffsetRange(first=first, last=last), self.batch_rows)),
            known=known,
            known_rows=self._known_rows(name, first, last, known) if known else 0,
            held_rows=self._held(lane, first, last),
            conflicts=tuple(conflicts),
        )

    def _known(self, name: str, first: int, last: int) -> Iterator[OffsetRange]:
        sql = (
            f"select first_offset, last_offset from {self.failed_table} where table_name = ? "
            "and status in ('open', 'discarded') and last_offset >= ? and first_offset <= ? order by 1"
        )
        for a, b in self.session.rows(sql, [name, first, last]):
            yield OffsetRange(first=a, last=b)

    def _known_rows(self, name: str, first: int, last: int, known: Sequence[OffsetRange]) -> int:
        where = {"lane": name, "first": first, "last": last}
        ranges = {"firsts": [r.first for r in known], "lasts": [r.last for r in known]}
        row = self.session.row(statement("replay/known"), where | ranges)
        return int(row[0]) if row else 0

    def _held(self, lane: Lane, first: int, last: int) -> int:
        sql = (
            f"select uniqExact({lane.offset_column}) from {quote_clickhouse(lane.target)} "
            f"where _pipeline = {{pipeline:String}} and {lane.offset_column} between {{first:Int64}} and {{last:Int64}}"
        )
        try:
            return int(self.sink.scalar(sql, {"pipeline": self.pipeline, "first": first, "last": last}))
        except SinkMisshapen:  # it does not exist: a conflict says so
            return 0

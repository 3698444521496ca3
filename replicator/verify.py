"""Verify: compare log and sink, table by table, down to the row, the key and the record.

Guarantees: only what was delivered is compared, less what is parked, discarded or expired; a row or key is called wrong
when sums differed and a second, closer look found it. Only reads: `repair` mends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

import structlog
from attrs import define, evolve, field

from replicator.catalog import Catalog
from replicator.compare import Side
from replicator.database import Session, now, statement
from replicator.database_errors import UNREADABLE
from replicator.errors import UsageError
from replicator.lanes import Lane
from replicator.model import GENERIC_LANE, OffsetRange
from replicator.schema import TableSchema, quote_clickhouse
from replicator.sink import ClickHouseSink
from replicator.verify_breaks import breaks
from replicator.verify_known import Known
from replicator.verify_ledger import LedgerComparison, beyond
from replicator.verify_report import Invariant, Problem, TableResult, VerifyReport, VerifyRequest
from replicator.verify_rows import RowComparison, Scope
from replicator.verify_state import StateComparison

EXPIRY_SLACK = timedelta(hours=1)
"""Rows so near to the end of their time in T_log may go while they are compared."""

log = structlog.get_logger(__name__)


@define
class Progress:
    """How far a comparison has come. ``step`` is called after each piece of work with the seconds it took."""

    rows: int = 0
    rows_expected: int = 0
    what: str = ""
    step: Callable[[float], None] = lambda _: None
    watch: Callable[[], None] = lambda: None
    """Called whenever there is something new to show."""
    clock: Callable[[], float] = time.monotonic
    _since: float = field(factory=time.monotonic)

    def compared(self, rows: int) -> None:
        self.rows += rows
        self.watch()
        seconds = self.clock() - self._since
        self.step(seconds)
        self._since = self.clock()


@define
class Verifier:
    """Compares with a session of its own, beside the loops. One comparison at a time per verifier."""

    session: Session
    sink: ClickHouseSink
    catalog: Catalog
    pipeline: str
    failed_table: str = '"failed_syncs"'

    def verify(self, request: VerifyRequest, progress: Progress | None = None) -> VerifyReport:
        """Compare everything asked for. Raises SinkUnavailable or UsageError; an answer is whole or not given."""
        progress = progress or Progress()
        started = now()
        checkpoints = self._checkpoints(request)
        scopes = self._scopes(request, checkpoints)
        existing = self._existing(scopes)
        comparisons = {
            name: self._rows(name, scope, request, progress, exists=self.target(name) in existing)
            for name, scope in scopes.items()
            if scope is not None
        }
        for comparison in comparisons.values():
            progress.rows_expected += sum(segment.frozen.rows for segment in comparison.segments)
        results = []
        for name, scope in scopes.items():
            progress.what = name
            results.append(self._table(name, scope, comparisons.get(name), request, existing))
            progress.compared(0)
        progress.what = "the ledger"
        problems = self._ledger(checkpoints).run() if request.whole and not request.tables else []
        report = VerifyReport(
            started_at=started, finished_at=now(), request=request, tables=tuple(results), problems=tuple(problems)
        )
        log.info("verified", rows=report.rows, mismatches=report.mismatches)
        return report

    # ── what is compared ──

    def _checkpoints(self, request: VerifyRequest) -> dict[str, int]:
        """Up to where each lane's offsets are in the sink, or parked."""
        before = now() - timedelta(seconds=request.watermark_age_seconds)
        return dict(self.session.rows(statement("verify/checkpoints"), {"before": before}))

    def _names(self, request: VerifyRequest) -> tuple[str, ...]:
        seen = [name for (name,) in self.session.rows("select distinct table_name from sync_batches order by 1")]
        known = tuple(dict.fromkeys([*self.catalog.current, *seen, GENERIC_LANE]))
        unknown = [name for name in request.tables if name not in known]
        if unknown:
            raise UsageError(f"there is no table {', '.join(unknown)}", hint=f"there are {', '.join(known)}")
        return request.tables or known

    def _scopes(self, request: VerifyRequest, checkpoints: Mapping[str, int]) -> dict[str, Scope | None]:
        """By table what of it is compared, None where that is nothing."""
        low, known = self.oldest(), self.known_ranges()
        scopes: dict[str, Scope | None] = {}
        for name in self._names(request):
            checkpoint = checkpoints.get(name, 0)
            last = checkpoint if request.last is None else min(checkpoint, request.last)
            first = max(request.first, low)
            if last < first:
                scopes[name] = None
                continue
            offsets, left_out = OffsetRange(first=first, last=last), known.get(name, Known())
            scopes[name] = Scope(table=name, offsets=offsets, checkpoint=checkpoint, low=low, known=left_out)
        return scopes

    def oldest(self) -> int:
        """The oldest offset that both sides still hold: the log's first, or the first whose time in T_log is not over."""
        row = self.session.row("select coalesce(min(log_offset), 1) from change_log")
        low = int(row[0]) if row else 1
        days = self.catalog.log_ttl_days
        if not days:
            return low
        cutoff = now() - timedelta(days=days) + EXPIRY_SLACK
        sql = "select min(log_offset), (select max(log_offset) from change_log) from change_log where logged_at >= ?"
        kept, head = self.session.row(sql, [cutoff]) or (None, None)
        return max(low, kept if kept is not None else (head or 0) + 1)

    def known_ranges(self) -> dict[str, Known]:
        """By table the ranges that are known not to be in the sink: parked or discarded."""
        sql = (
            f"select table_name, first_offset, last_offset from {self.failed_table} "
            "where status in ('open', 'discarded') order by 1, 2"
        )
        found: dict[str, list[OffsetRange]] = {}
        for name, first, last in self.session.rows(sql):
            found.setdefault(name, []).append(OffsetRange(first=first, last=last))
        return {name: Known.of(ranges) for name, ranges in found.items()}

    def lane(self, name: str, schema_version: int) -> Lane:
        return self.catalog.lane(name, schema_version)

    def schema(self, name: str) -> TableSchema | None:
        """The table's newest schema, None for what is not declared."""
        history = [] if name == GENERIC_LANE else self.catalog.history(name)
        return history[-1] if history else None

    def target(self, name: str) -> str:
        """Where the table's changes stand in ClickHouse."""
        return self.lane(name, 0).target

    def _existing(self, scopes: Mapping[str, object]) -> set[str]:
        names = [self.target(name) for name in scopes]
        names += [schema.state_name for name in scopes if (schema := self.schema(name))]
        return set(self.sink.columns_of(names))

    # ── one table ──

    def _rows(
        self, name: str, scope: Scope, request: VerifyRequest, progress: Progress, *, exists: bool
    ) -> RowComparison:
        return RowComparison(
            session=self.session,
            sink=self.sink,
            pipeline=self.pipeline,
            scope=scope,
            lane=lambda version: self.lane(name, version),
            exists=exists,
            reread_log=request.reread_log,
            compared=progress.compared,
        )

    def _table(
        self,
        name: str,
        scope: Scope | None,
        comparison: RowComparison | None,
        request: VerifyRequest,
        existing: set[str],
    ) -> TableResult:
        problems = list(self._missing_tables(name, existing)) if scope else []
        if request.whole and self.target(name) in existing:
            lane = self.lane(name, 0)
            target, column = quote_clickhouse(lane.target), lane.offset_column
            problems += beyond(self.session, self.sink, self.pipeline, name, target, column)
        if scope is None or comparison is None:
            return TableResult(table=name, problems=tuple(problems))
        comparison.run()
        result = TableResult(
            table=name,
            offsets=scope.offsets,
            rows=comparison.rows,
            faults=tuple(comparison.faults),
            mismatches=tuple(sorted(comparison.mismatches, key=lambda m: m.offset)),
            problems=(*problems, *comparison.problems),
            notes=tuple(_read_beyond(scope, comparison)),
        )
        schema = self.schema(name)
        if schema is None:
            return result
        try:
            return self._with_state(result, schema, scope, request, existing)
        except UNREADABLE:
            if not any(fault.side is Side.LOG for fault in comparison.faults):
                raise
            unread = "current rows and sums were not compared: they follow from changes that cannot be read any more"
            return evolve(result, notes=(*result.notes, unread))

    def _with_state(
        self, result: TableResult, schema: TableSchema, scope: Scope, request: VerifyRequest, existing: set[str]
    ) -> TableResult:
        """The table's current rows too, which depend on all offsets, and its sums."""
        if request.state and request.whole:
            state = StateComparison(
                session=self.session,
                sink=self.sink,
                pipeline=self.pipeline,
                schema=schema,
                checkpoint=scope.checkpoint,
                low=scope.low,
                known=scope.known,
                exists=schema.state_name in existing,
            )
            found = state.run()
            result = evolve(result, state=tuple(found), keys=state.keys)
        declared = self.catalog.sums.get(schema.name)
        if request.breaks and declared and schema.log_name in existing:
            history = self.catalog.history(schema.name)
            found_breaks = breaks(self.session, self.sink, self.pipeline, history, declared, scope)
            result = evolve(result, breaks=tuple(found_breaks), notes=(*result.notes, *_sums_of(scope)))
        return result

    def _missing_tables(self, name: str, existing: set[str]) -> list[Problem]:
        schema = self.schema(name)
        wanted = [self.target(name), *([schema.state_name] if schema else [])]
        return [
            Problem(
                invariant=Invariant.EXISTS,
                detail=f"{table} is missing",
                side=Side.SINK,
                table=name,
                hint="`replicator verify --repair` makes and fills it",
            )
            for table in wanted
            if table not in existing
        ]

    def _ledger(self, checkpoints: Mapping[str, int]) -> LedgerComparison:
        return LedgerComparison(
            session=self.session,
            sink=self.sink,
            pipeline=self.pipeline,
            failed_table=self.failed_table,
            checkpoints=checkpoints,
        )


def _read_beyond(scope: Scope, comparison: RowComparison) -> Iterator[str]:
    """That whole batches are read, which reach beyond what was asked for."""
    spans = [segment.offsets for segment in comparison.segments]
    first = min((span.first for span in spans), default=scope.offsets.first)
    last = max((span.last for span in spans), default=scope.offsets.last)
    if first < scope.offsets.first or last > scope.offsets.last:
        yield (
            f"batches are compared whole: rows are those of {first}..{last}, differences those of {scope.offsets.first}.."
            f"{scope.offsets.last}"
        )


def _sums_of(scope: Scope) -> Iterator[str]:
    """Of which changes the declared sums are, where that is not all up to the checkpoint."""
    first, last = scope.offsets.first, scope.offsets.last
    if first > 1 or last < scope.checkpoint:
        why = f"; {first} is the first offset that both sides still hold" if first == scope.low > 1 else ""
        yield f"sums are those of keys that changed in {first}..{last}, no others{why}"

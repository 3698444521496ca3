"""Verify: compare log and sink range by range, down to the row, and say what differs.

Guarantees: only offsets at or below a lane's checkpoint are compared, less the parked and discarded ranges; what is
reported was re-read once before it was said. Only reads: `repair` mends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import structlog
from attrs import field, frozen

from replicator.catalog import Catalog
from replicator.compare import (
    BUCKET_OFFSETS,
    FINE_OFFSETS,
    Difference,
    Mismatch,
    Sums,
    log_columns_sql,
    log_hashes_sql,
    log_sums_sql,
    sink_columns_sql,
    sink_hashes_sql,
    sink_sums_sql,
    unequal_buckets,
    unequal_columns,
    unequal_offsets,
)
from replicator.database import Session, now, statement
from replicator.lanes import Lane
from replicator.model import GENERIC_LANE, OffsetRange
from replicator.schema import quote_clickhouse
from replicator.sink import ClickHouseSink
from replicator.verify_invariants import Problem, log_problems, state_problems

DETAILED_MAX = 1_000
"""Rows at fault whose columns are compared one by one; of the others the offset and the kind are said."""
SPAN_OFFSETS = 2_000_000
"""Offsets whose sums are asked for at a time."""

log = structlog.get_logger(__name__)
Progress = Callable[[int, int], None]
"""Called with (rows compared, rows to compare)."""


@frozen(kw_only=True)
class VerifyRequest:
    """What to compare. ``tables`` empty: all; ``first`` and ``last`` bound the offsets."""

    tables: tuple[str, ...] = ()
    first: int = 1
    last: int | None = None
    state: bool = True
    """Whether T is compared key by key, too."""


@frozen(kw_only=True)
class TableResult:
    """One lane's comparison. ``rows`` were compared in ``offsets``; None where the lane has none."""

    table: str
    offsets: OffsetRange | None
    rows: int
    mismatches: tuple[Mismatch, ...] = ()
    problems: tuple[Problem, ...] = ()


@frozen(kw_only=True)
class VerifyReport:
    """The whole answer. ``problems`` are broken invariants that belong to no single table."""

    started_at: datetime
    finished_at: datetime
    tables: tuple[TableResult, ...]
    problems: tuple[Problem, ...] = field(default=())

    @property
    def mismatches(self) -> int:
        """Rows and invariants at fault."""
        return len(self.problems) + sum(len(t.mismatches) + len(t.problems) for t in self.tables)

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)


@frozen(kw_only=True)
class Verifier:
    """Compares with a session of its own; several may run beside the loops."""

    session: Session
    sink: ClickHouseSink
    catalog: Catalog
    pipeline: str
    failed_table: str = '"failed_syncs"'

    def verify(self, request: VerifyRequest, progress: Progress | None = None) -> VerifyReport:
        """Compare everything asked for. Raises SinkUnavailable; an answer is whole or not given."""
        started = now()
        checkpoints = self._checkpoints()
        names = request.tables or tuple(dict.fromkeys([*self.catalog.current, *checkpoints]))
        total = sum(self._last(request, checkpoints.get(name, 0)) for name in names)
        done, results = 0, []
        for name in names:
            last = self._last(request, checkpoints.get(name, 0))
            results.append(self._table(name, request, last))
            done += last
            if progress:
                progress(done, total)
        problems = tuple(log_problems(self.session, self.sink, self.pipeline, self.failed_table))
        report = VerifyReport(started_at=started, finished_at=now(), tables=tuple(results), problems=problems)
        log.info("verified", rows=report.rows, mismatches=report.mismatches)
        return report

    def _checkpoints(self) -> dict[str, int]:
        """Up to where each lane's offsets are in the sink, or parked."""
        return {name: offset for name, offset in self.session.rows(statement("verify/checkpoints")) if offset}

    def _last(self, request: VerifyRequest, checkpoint: int) -> int:
        return min(checkpoint, request.last or checkpoint)

    def _table(self, name: str, request: VerifyRequest, last: int) -> TableResult:
        mismatches: list[Mismatch] = [] if request.last else self._beyond(name)
        rows = 0
        known = self.known_ranges(name)
        for lane in self.lanes(name):
            for first in range(request.first, last + 1, SPAN_OFFSETS):
                span = OffsetRange(first=first, last=min(last, first + SPAN_OFFSETS - 1))
                compared, found = self._span(lane, span, known)
                rows += compared
                mismatches += found
        problems: list[Problem] = []
        if request.state and name != GENERIC_LANE and last:
            problems = state_problems(self.session, self.sink, self.catalog.history(name)[-1])
        offsets = OffsetRange(first=request.first, last=last) if last >= request.first else None
        return TableResult(
            table=name, offsets=offsets, rows=rows, mismatches=tuple(joined(mismatches)), problems=tuple(problems)
        )

    def _beyond(self, name: str) -> list[Mismatch]:
        """Rows of the sink above everything that was ever frozen for the lane."""
        row = self.session.row("select coalesce(max(last_offset), 0) from sync_batches where table_name = ?", [name])
        lane = self.lanes(name)[-1]
        sql = (
            f"select distinct {lane.offset_column} from {quote_clickhouse(lane.target)} "
            f"where _pipeline = {{pipeline:String}} and {lane.offset_column} > {{last:Int64}} limit {DETAILED_MAX}"
        )
        found = self.sink.rows(sql, {"pipeline": self.pipeline, "last": row[0] if row else 0})
        frozen = self.session.row("select coalesce(max(last_offset), 0) from sync_batches where table_name = ?", [name])
        latest = frozen[0] if frozen else 0
        return [Mismatch(table=name, offset=at, kind=Difference.EXTRA) for (at,) in found if at > latest]

    def lanes(self, name: str) -> list[Lane]:
        """The table's lanes, one per schema version."""
        if name == GENERIC_LANE:
            return [self.catalog.lane(name, 0)]
        return [self.catalog.lane(name, schema.schema_version) for schema in self.catalog.history(name)]

    def known_ranges(self, name: str) -> list[OffsetRange]:
        """Ranges that are known not to be in the sink: parked or discarded."""
        sql = (
            f"select first_offset, last_offset from {self.failed_table} "
            "where table_name = ? and status in ('open', 'discarded') order by 1"
        )
        return [OffsetRange(first=first, last=last) for first, last in self.session.rows(sql, [name])]

    # ── one span of offsets, coarse to fine ──

    def _span(self, lane: Lane, span: OffsetRange, known: Sequence[OffsetRange]) -> tuple[int, list[Mismatch]]:
        ours, theirs = self._sums(lane, span, BUCKET_OFFSETS, known)
        found: list[Mismatch] = []
        for bucket in unequal_buckets(ours, theirs):
            for fine in self._fine(lane, _bucket_range(bucket, BUCKET_OFFSETS, span), known):
                found += self._rows(lane, fine, known)
        return sum(sums[0] for sums in ours.values()), found

    def _fine(self, lane: Lane, span: OffsetRange, known: Sequence[OffsetRange]) -> Iterator[OffsetRange]:
        ours, theirs = self._sums(lane, span, FINE_OFFSETS, known)
        for bucket in unequal_buckets(ours, theirs):
            yield _bucket_range(bucket, FINE_OFFSETS, span)

    def _sums(self, lane: Lane, span: OffsetRange, bucket: int, known: Sequence[OffsetRange]) -> tuple[Sums, Sums]:
        where = {"first": span.first, "last": span.last}
        ours = self.session.rows(log_sums_sql(lane, bucket, known), where)
        theirs = self.sink.rows(sink_sums_sql(lane, bucket, known), {**where, "pipeline": self.pipeline})
        return _by_bucket(ours), _by_bucket(theirs)

    def _rows(self, lane: Lane, span: OffsetRange, known: Sequence[OffsetRange]) -> list[Mismatch]:
        where = {"first": span.first, "last": span.last}
        ours = self.session.arrow(log_hashes_sql(lane, known), where)
        theirs = self.sink.arrow(sink_hashes_sql(lane, known), {**where, "pipeline": self.pipeline})
        found = unequal_offsets(ours, theirs)
        details = self._details(lane, span, [at for at, kind in found.items() if kind is Difference.DIFFERENT])
        keys = self._keys(list(found))
        return [
            Mismatch(table=lane.name, offset=at, kind=kind, key=keys.get(at), columns=details.get(at, {}))
            for at, kind in found.items()
        ]

    def _details(
        self, lane: Lane, span: OffsetRange, offsets: Sequence[int]
    ) -> dict[int, dict[str, tuple[str | None, str | None]]]:
        offsets = list(offsets[:DETAILED_MAX])
        if not offsets:
            return {}
        ours = self.session.rows(log_columns_sql(lane), {"first": span.first, "last": span.last, "offsets": offsets})
        theirs = self.sink.rows(sink_columns_sql(lane), {"pipeline": self.pipeline, "offsets": offsets})
        by_offset = {row[0]: row for row in theirs}
        return {row[0]: unequal_columns(lane, row, by_offset[row[0]]) for row in ours if row[0] in by_offset}

    def _keys(self, offsets: Sequence[int]) -> dict[int, str]:
        if not offsets:
            return {}
        bounds = {"first": min(offsets), "last": max(offsets), "offsets": list(offsets[:DETAILED_MAX])}
        return dict(self.session.rows(statement("verify/keys"), bounds))


def joined(mismatches: Sequence[Mismatch]) -> list[Mismatch]:
    """One mismatch per offset: a row that changed its schema version is missing in one lane and extra in another."""
    by_offset: dict[int, Mismatch] = {}
    for mismatch in mismatches:
        known = by_offset.get(mismatch.offset)
        if known is None or mismatch.kind is Difference.DIFFERENT:
            by_offset[mismatch.offset] = mismatch
        elif known.kind is not mismatch.kind and known.kind is not Difference.DIFFERENT:
            columns = {"_schema_version": ("as logged", "another")}
            by_offset[mismatch.offset] = Mismatch(
                table=known.table, offset=known.offset, kind=Difference.DIFFERENT, key=known.key, columns=columns
            )
    return [by_offset[at] for at in sorted(by_offset)]


def _by_bucket(rows: Sequence[Sequence[int]]) -> Sums:
    return {int(row[0]): tuple(map(int, row[1:])) for row in rows}


def _bucket_range(bucket: int, size: int, within: OffsetRange) -> OffsetRange:
    first, last = bucket * size + 1, (bucket + 1) * size
    return OffsetRange(first=max(first, within.first), last=min(last, within.last))

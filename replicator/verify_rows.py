"""T_log against the log, coarse to fine: groups of batches, single batches, rows, columns.

Guarantees: what was frozen before the first send is the third witness, so that a log or a record that was altered is
told from a sink that was; memory is bounded by one batch. Only reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
from attrs import define, field, frozen

from replicator.compare import (
    Difference,
    Fault,
    Mismatch,
    Offsets,
    Rows,
    Segment,
    Side,
    faults,
    log_columns_sql,
    log_hashes_sql,
    log_sums_sql,
    merged,
    sink_columns_sql,
    sink_doubled_sql,
    sink_hashes_sql,
    sink_sums_sql,
    unequal_columns,
)
from replicator.database import Session, statement
from replicator.database_errors import UNREADABLE
from replicator.lanes import Lane
from replicator.model import NOTHING, Checksum, OffsetRange
from replicator.sink import ClickHouseSink
from replicator.verify_known import Known
from replicator.verify_report import DETAILED_MAX, Batch, Invariant, Problem

SEGMENT_ROWS = 500_000
ROWS_AT_ONCE = 2_000_000
SEGMENTS_AT_ONCE = 64
PARTS_MAX = 16
"""A group at fault is cut into so many, until so few rows are left that they are looked at one by one:"""
ROWS_CLOSE = 120_000


@frozen(kw_only=True)
class Scope:
    """What of a table is compared: delivered batches up to ``checkpoint`` that touch ``offsets``.

    Below ``low`` the log or the sink may have let rows go; ``known`` are parked or discarded.
    """

    table: str
    offsets: OffsetRange
    checkpoint: int
    low: int
    known: Known

    def parameters(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "first": self.offsets.first,
            "last": self.offsets.last,
            "checkpoint": self.checkpoint,
            "low": self.low,
            "known_firsts": self.known.firsts,
            "known_lasts": self.known.lasts,
        }


@define
class RowComparison:
    """One table's comparison. Results gather in ``faults``, ``mismatches`` and ``problems``."""

    session: Session
    sink: ClickHouseSink
    pipeline: str
    scope: Scope
    lane: Callable[[int], Lane]
    """The table's lane at a schema version."""
    exists: bool
    """Whether the table is there in ClickHouse."""
    reread_log: bool
    compared: Callable[[int], None]
    """Called with the number of rows just compared."""
    rows: int = 0
    faults: list[Fault] = field(factory=list)
    mismatches: list[Mismatch] = field(factory=list)
    problems: list[Problem] = field(factory=list)

    def run(self) -> None:
        for version in sorted({segment.schema_version for segment in self.segments}):
            lane = self.lane(version)
            for some in _at_once([segment for segment in self.segments if segment.schema_version == version]):
                self._compare(lane, some)
        for cut in self._cut_batches():
            self._compare_cut(self.lane(cut.schema_version), cut)

    @cached_property
    def segments(self) -> list[Segment]:
        """The whole batches to compare, in groups: counted before the first table is compared, and not asked for twice."""
        rows = self.session.rows(statement("verify/segments"), {**self.scope.parameters(), "rows": SEGMENT_ROWS})
        return [_segment(row) for row in rows]

    # ── groups of batches ──

    def _compare(self, lane: Lane, segments: Sequence[Segment]) -> None:
        for segment in self._unequal(lane, segments):
            self._refine(lane, segment)
        first, last = segments[0].offsets.first, segments[-1].offsets.last
        self._look_for_doubled(lane, OffsetRange(first=first, last=last))
        rows = sum(segment.frozen.rows for segment in segments)
        self.rows += rows
        self.compared(rows)

    def _unequal(self, lane: Lane, segments: Sequence[Segment]) -> Iterator[Segment]:
        """The segments for which log, sink and frozen checksums do not all agree."""
        where = {"first": segments[0].offsets.first, "last": segments[-1].offsets.last}
        parts = [segment.offsets for segment in segments]
        theirs = self._sink_sums(lane, parts, where)
        ours = self._log_sums(lane, parts, where) if self.reread_log else None
        for part, segment in enumerate(segments):
            log = segment.frozen if ours is None else ours.get(part, NOTHING)
            if not (log == theirs.get(part, NOTHING) == segment.frozen):
                yield segment

    def _log_sums(self, lane: Lane, parts: Sequence[OffsetRange], where: dict[str, int]) -> dict[int, Checksum]:
        """By part; nothing when a change among them cannot be read."""
        try:
            return _sums(self.session.rows(log_sums_sql(lane, parts), where))
        except UNREADABLE:
            return {}

    def _sink_sums(self, lane: Lane, parts: Sequence[OffsetRange], where: dict[str, int]) -> dict[int, Checksum]:
        if not self.exists:
            return {}
        return _sums(self.sink.rows(sink_sums_sql(lane, parts), {**where, "pipeline": self.pipeline}))

    def _refine(self, lane: Lane, segment: Segment) -> None:
        batches = self._batches(segment)
        if len(batches) == 1 or segment.frozen.rows <= ROWS_CLOSE:
            return self._compare_rows(lane, batches)
        size = max(1, -(-len(batches) // PARTS_MAX))
        parts = [_joined(batches[at : at + size]) for at in range(0, len(batches), size)]
        for part in list(self._unequal(lane, parts)):
            self._refine(lane, part)
        return None

    def _batches(self, segment: Segment) -> list[Segment]:
        where = {"first": segment.offsets.first, "last": segment.offsets.last}
        where |= {"table": self.scope.table, "schema_version": segment.schema_version}  # type: ignore[dict-item]
        return [_batch(row) for row in self.session.rows(statement("verify/batches"), where)]

    # ── row by row ──

    def _compare_rows(self, lane: Lane, batches: Sequence[Segment]) -> None:
        """Neighbouring batches, read at once and judged one by one."""
        offsets = OffsetRange(first=batches[0].offsets.first, last=batches[-1].offsets.last)
        ours, theirs = self._log_rows(lane, offsets), self._sink_rows(lane, offsets)
        found: list[Fault] = []
        for batch in batches:
            log, sink = ours.within(batch.offsets), theirs.within(batch.offsets)
            if log.checksum == sink.checksum == batch.frozen:
                continue
            at_fault = faults(log, sink, batch.frozen)
            if not at_fault and log.checksum != batch.frozen:
                self.problems.append(self._lying_record(batch, log.checksum))
            found += at_fault
        self._take(lane, offsets, merged(found))

    def _log_rows(self, lane: Lane, offsets: OffsetRange) -> Rows:
        """What the log holds of a range. A change that cannot be read any more has a hash that no row has."""
        try:
            return Rows.of(self.session.arrow(log_hashes_sql(lane), {"first": offsets.first, "last": offsets.last}))
        except UNREADABLE:
            if offsets.first == offsets.last:
                return Rows.unreadable(offsets.first)
        middle = (offsets.first + offsets.last) // 2
        halves = (
            OffsetRange(first=offsets.first, last=middle),
            OffsetRange(first=middle + 1, last=offsets.last),
        )
        return Rows.joined([self._log_rows(lane, half) for half in halves])

    def _sink_rows(self, lane: Lane, offsets: OffsetRange) -> Rows:
        if not self.exists:
            return Rows.none()
        where = {"pipeline": self.pipeline, "first": offsets.first, "last": offsets.last}
        return Rows.of(self.sink.arrow(sink_hashes_sql(lane), where))

    def _lying_record(self, batch: Segment, held: Checksum) -> Problem:
        named = Batch(table=self.scope.table, first=batch.offsets.first, last=batch.offsets.last)
        detail = f"{batch.offsets} of {self.scope.table} is recorded as {batch.frozen}, both sides hold {held}"
        return Problem(invariant=Invariant.RECORD, detail=detail, side=Side.LOG, table=self.scope.table, batch=named)

    def _take(self, lane: Lane, offsets: OffsetRange, found: Sequence[Fault]) -> None:
        """Keep what lies in the range asked for, the first by name."""
        asked = self.scope.offsets
        for fault in found:
            kept = fault.offsets[(fault.offsets >= asked.first) & (fault.offsets <= asked.last)]
            if not len(kept):
                continue
            self.faults.append(Fault(side=fault.side, kind=fault.kind, offsets=kept))
            room = DETAILED_MAX - len(self.mismatches)
            if room > 0:
                self.mismatches += self._named(lane, offsets, fault, kept[:room].tolist())

    def _named(self, lane: Lane, offsets: OffsetRange, fault: Fault, places: list[int]) -> list[Mismatch]:
        keys = self._keys(places)
        columns = {}
        if fault.kind is Difference.DIFFERENT:
            with suppress(*UNREADABLE):  # then what differs is the whole change
                columns = self._columns(lane, offsets, places)
        return [
            Mismatch(
                table=lane.name,
                offset=at,
                kind=fault.kind,
                side=fault.side,
                key=keys.get(at),
                columns=columns.get(at, {}),
            )
            for at in places
        ]

    def _columns(
        self, lane: Lane, offsets: OffsetRange, places: list[int]
    ) -> dict[int, dict[str, tuple[str | None, str | None]]]:
        where = {"first": offsets.first, "last": offsets.last, "offsets": places}
        ours = self.session.rows(log_columns_sql(lane), where)
        theirs = self.sink.rows(sink_columns_sql(lane), {"pipeline": self.pipeline, "offsets": places})
        by_offset = {row[0]: row for row in theirs}
        return {row[0]: unequal_columns(lane, row, by_offset[row[0]]) for row in ours if row[0] in by_offset}

    def _keys(self, places: list[int]) -> dict[int, str]:
        where = {"first": min(places), "last": max(places), "offsets": places}
        return dict(self.session.rows(statement("verify/keys"), where))

    # ── batches that can be compared in part only ──

    def _cut_batches(self) -> list[Segment]:
        return [_batch(row) for row in self.session.rows(statement("verify/cut_batches"), self.scope.parameters())]

    def _compare_cut(self, lane: Lane, batch: Segment) -> None:
        """What lies below ``low`` or in a known range is not compared, but whoever holds it shows what was frozen with it."""
        ours, theirs = self._log_rows(lane, batch.offsets), self._sink_rows(lane, batch.offsets)
        left_out = [self._left_out(rows.places) for rows in (ours, theirs)]
        beside = ours.where(left_out[0])
        lent = theirs.where(left_out[1] & ~np.isin(theirs.places, beside.places))
        beside = Rows.joined([beside, lent])
        ours, theirs = ours.where(~left_out[0]), theirs.where(~left_out[1])
        self._take(lane, batch.offsets, faults(ours, theirs, batch.frozen, beside))
        self.rows += len(ours.places)
        self.compared(len(ours.places))

    def _left_out(self, places: Offsets) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return (places < self.scope.low) | self.scope.known.hold(places)

    # ── rows sent once that stand there twice ──

    def _look_for_doubled(self, lane: Lane, offsets: OffsetRange) -> None:
        if not self.exists:
            return
        where = {"pipeline": self.pipeline, "first": offsets.first, "last": offsets.last}
        found = [at for (at,) in self.sink.rows(sink_doubled_sql(lane, DETAILED_MAX), where)]
        places = [at for at in sorted(found) if at not in self.scope.known]
        named = {m.offset for m in self.mismatches if m.side is not Side.LOG}
        doubled = np.array([at for at in places if at not in named], np.int64)
        if len(doubled):
            self._take(lane, offsets, [Fault(side=Side.SINK, kind=Difference.DOUBLED, offsets=doubled)])


def _at_once(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Neighbours that are asked for in one query."""
    some: list[Segment] = []
    for segment in segments:
        rows = sum(one.frozen.rows for one in some)
        if some and (rows + segment.frozen.rows > ROWS_AT_ONCE or len(some) == SEGMENTS_AT_ONCE):
            yield some
            some = []
        some.append(segment)
    if some:
        yield some


def _sums(rows: Sequence[Sequence[Any]]) -> dict[int, Checksum]:
    return {int(row[0]): Checksum(rows=int(row[1]), sum=int(row[2]), xor=int(row[3])) for row in rows}


def _segment(row: Sequence[Any]) -> Segment:
    version, first, last, batches, rows, total, xor = row
    frozen_sums = Checksum(rows=int(rows), sum=int(total), xor=int(xor))
    offsets = OffsetRange(first=first, last=last)
    return Segment(schema_version=version, offsets=offsets, batches=batches, frozen=frozen_sums)


def _batch(row: Sequence[Any]) -> Segment:
    version, first, last, checksum = row
    offsets = OffsetRange(first=first, last=last)
    return Segment(schema_version=version, offsets=offsets, batches=1, frozen=Checksum.parse(checksum))


def _joined(batches: Sequence[Segment]) -> Segment:
    return Segment(
        schema_version=batches[0].schema_version,
        offsets=OffsetRange(first=batches[0].offsets.first, last=batches[-1].offsets.last),
        batches=len(batches),
        frozen=sum((batch.frozen for batch in batches), NOTHING),
    )

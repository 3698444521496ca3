"""What verify was asked and what it found, as values and as the documented JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from attrs import field, frozen

from replicator.compare import Difference, Fault, Mismatch, Side
from replicator.model import OffsetRange

DETAILED_MAX = 1_000
"""Rows at fault per table that are named with key and columns; of the others only the offsets are known."""
RANGES_MAX = 1_000


class Invariant(StrEnum):
    """What must hold beside equal rows."""

    OFFSETS = "offsets are gapless and single"
    COVERED = "every offset at or below the checkpoint was delivered or parked"
    CHECKPOINT = "the checkpoint tells the truth"
    RECORD = "a batch's record holds its checksum"
    LEDGER_WHOLE = "the sink's ledger is whole"
    LEDGER_TRUE = "the sink's ledger tells the truth"
    BEYOND = "the sink holds nothing beyond what was sent"
    EXISTS = "the table exists in ClickHouse"


@frozen(kw_only=True)
class VerifyRequest:
    """What to compare. ``tables`` empty: all; ``first`` and ``last`` bound the offsets.

    ``reread_log`` False takes the checksums frozen before the first send for the log's: quick, and blind to a log that
    was altered since.
    """

    tables: tuple[str, ...] = ()
    first: int = 1
    last: int | None = None
    state: bool = True
    """Whether T is compared key by key, too."""
    breaks: bool = True
    """Whether the declared sums are compared, too."""
    reread_log: bool = True
    watermark_age_seconds: float = 0.0
    """What was delivered less than this ago is left out."""

    @property
    def whole(self) -> bool:
        """Whether all offsets are asked for."""
        return self.first <= 1 and self.last is None


@frozen(kw_only=True)
class Batch:
    """Names a batch: its table and its range."""

    table: str
    first: int
    last: int


@frozen(kw_only=True)
class Problem:
    """One broken invariant. ``batch`` where it is about one; ``side`` is where it is to be mended."""

    invariant: Invariant
    detail: str
    side: Side = Side.UNKNOWN
    table: str | None = None
    batch: Batch | None = None
    hint: str = ""


@frozen(kw_only=True)
class StateFault:
    """One key of T that differs. ``key_hash`` is the same on both sides; a version is None where the key is not current."""

    key_hash: int
    kind: Difference
    side: Side
    key: str | None = None
    log_version: int | None = None
    sink_version: int | None = None


@frozen(kw_only=True)
class Break:
    """A group whose count or sum differs between log and sink. Values are exact texts; None where the group is missing."""

    group: Mapping[str, str | None]
    column: str
    log: str | None
    sink: str | None


@frozen(kw_only=True)
class TableResult:
    """One table's comparison. ``rows`` were compared in ``offsets``; None where there was nothing to compare."""

    table: str
    offsets: OffsetRange | None = None
    rows: int = 0
    keys: int | None = None
    """Keys of T that were compared; None when T was not."""
    faults: tuple[Fault, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    """The first of the rows at fault, by name."""
    state: tuple[StateFault, ...] = ()
    breaks: tuple[Break, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    """What was not compared, or not of all offsets."""

    @property
    def rows_at_fault(self) -> int:
        return sum(len(fault.offsets) for fault in self.faults)

    @property
    def count(self) -> int:
        """Everything at fault."""
        return self.rows_at_fault + len(self.state) + len(self.breaks) + len(self.problems)

    def offsets_of(self, side: Side, *kinds: Difference) -> list[int]:
        """Offsets at fault on that side, in order."""
        found = [f.offsets.tolist() for f in self.faults if f.side is side and (not kinds or f.kind in kinds)]
        return sorted(offset for some in found for offset in some)


@frozen(kw_only=True)
class VerifyReport:
    """The whole answer. ``problems`` are broken invariants that belong to no single table."""

    started_at: datetime
    finished_at: datetime
    request: VerifyRequest
    tables: tuple[TableResult, ...]
    problems: tuple[Problem, ...] = field(default=())

    @property
    def mismatches(self) -> int:
        """Rows, keys, sums and invariants at fault."""
        return len(self.problems) + sum(table.count for table in self.tables)

    @property
    def notes(self) -> tuple[str, ...]:
        """What this comparison left out, so that nobody takes it for more than it is."""
        said = []
        if not self.request.whole:
            said.append(
                "only some offsets were asked for: current rows (T), the ledger and checkpoints were not compared"
            )
        elif self.request.tables:
            said.append(
                "only some tables were asked for: the ledger, checkpoints and gapless offsets were not compared"
            )
        if not self.request.reread_log:
            said.append("the log was not read again: the checksums frozen before sending were taken for it")
        return (*said, *(f"{table.table}: {note}" for table in self.tables for note in table.notes))

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    def as_json(self) -> dict[str, Any]:
        """The documented form; fields are only ever added. Versions and sums are strings."""
        return {
            "started_at": f"{self.started_at.isoformat()}Z",
            "finished_at": f"{self.finished_at.isoformat()}Z",
            "seconds": round((self.finished_at - self.started_at).total_seconds(), 3),
            "rows": self.rows,
            "mismatches": self.mismatches,
            "log_reread": self.request.reread_log,
            "tables": [_table_json(table) for table in self.tables],
            "problems": [_problem_json(problem) for problem in self.problems],
            "notes": list(self.notes),
        }


def _table_json(table: TableResult) -> dict[str, Any]:
    return {
        "table": table.table,
        "first_offset": table.offsets.first if table.offsets else None,
        "last_offset": table.offsets.last if table.offsets else None,
        "rows": table.rows,
        "keys": table.keys,
        "mismatches": table.count,
        "faults": [
            {"side": f.side, "kind": f.kind, "rows": len(f.offsets), "ranges": list(runs(f.offsets.tolist()))[:RANGES_MAX]}
            for f in table.faults
        ],
        "rows_at_fault": [
            {
                "offset": m.offset,
                "side": m.side,
                "kind": m.kind,
                "key": m.key,
                "columns": {name: {"log": log, "sink": sink} for name, (log, sink) in m.columns.items()},
            }
            for m in table.mismatches
        ],
        "state": [
            {
                "key": s.key,
                "side": s.side,
                "kind": s.kind,
                "log_version": None if s.log_version is None else str(s.log_version),
                "sink_version": None if s.sink_version is None else str(s.sink_version),
            }
            for s in table.state[:DETAILED_MAX]
        ],
        "breaks": [
            {"group": dict(b.group), "column": b.column, "log": b.log, "sink": b.sink} for b in table.breaks[:DETAILED_MAX]
        ],
        "problems": [_problem_json(problem) for problem in table.problems],
    }  # fmt: skip


def _problem_json(problem: Problem) -> dict[str, Any]:
    batch = problem.batch
    return {
        "invariant": str(problem.invariant),
        "detail": problem.detail,
        "side": problem.side,
        "table": problem.table or (batch.table if batch else None),
        "first_offset": batch.first if batch else None,
        "last_offset": batch.last if batch else None,
        "hint": problem.hint or None,
    }


def runs(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted offsets as (first, last) of what is consecutive."""
    first = previous = None
    for offset in offsets:
        if previous is not None and offset == previous + 1:
            previous = offset
            continue
        if first is not None and previous is not None:
            yield first, previous
        first = previous = offset
    if first is not None and previous is not None:
        yield first, previous

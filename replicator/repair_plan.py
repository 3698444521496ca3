"""What a repair does about each finding of verify, and what it did. Pure.

Guarantees: every finding is either in the plan or counted as left alone, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import field, frozen

from replicator.compare import Difference, Side
from replicator.verify_report import (
    Batch,
    Invariant,
    Problem,
    StateFault,
    TableResult,
    VerifyReport,
    runs,
)

LEFT_MAX = 100


@frozen(kw_only=True)
class TablePlan:
    """What is done about one table, in this order: the table made, the log mended, then the sink, then the state."""

    table: str
    make: bool = False
    """Whether a table is missing in ClickHouse."""
    log_fetch: tuple[int, ...] = ()
    """Offsets whose change the log lost or has altered: fetched back from the sink, which has what was frozen."""
    log_remove: tuple[int, ...] = ()
    """Offsets that the log has and nothing was frozen of."""
    log_single: tuple[int, ...] = ()
    """Offsets that the log has more than once."""
    resend: tuple[int, ...] = ()
    sink_single: tuple[int, ...] = ()
    """Offsets that stand in the sink more than once: sent again, older rows removed."""
    sink_remove: tuple[int, ...] = ()
    sink_state: tuple[StateFault, ...] = ()
    log_state: tuple[StateFault, ...] = ()
    records: tuple[Batch, ...] = ()
    """Batches whose record holds another checksum than both sides."""
    cover: tuple[Batch, ...] = ()
    checkpoint: bool = False

    @property
    def is_empty(self) -> bool:
        return self == TablePlan(table=self.table)

    def as_json(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "make_table": self.make,
            "send_again": len(self.resend) + len(self.sink_single),
            "send_again_ranges": [list(run) for run in runs(sorted({*self.resend, *self.sink_single}))][:LEFT_MAX],
            "remove_from_sink": len(self.sink_remove),
            "fetch_into_log": len(self.log_fetch),
            "remove_from_log": len(self.log_remove) + len(self.log_single),
            "keys_in_sink": len(self.sink_state),
            "keys_in_log": len(self.log_state),
            "records": len(self.records),
            "ranges_to_deliver": [[batch.first, batch.last] for batch in self.cover],
            "checkpoint": self.checkpoint,
        }


@frozen(kw_only=True)
class RepairPlan:
    """``ledger``: batches whose row in the sink's ledger is written anew, or removed where it is no batch of ours."""

    tables: tuple[TablePlan, ...]
    ledger: tuple[Batch, ...] = ()
    left: tuple[str, ...] = ()
    """What is not mended, and why."""

    @property
    def is_empty(self) -> bool:
        return not self.ledger and all(table.is_empty for table in self.tables)

    def as_json(self) -> dict[str, Any]:
        return {
            "tables": [table.as_json() for table in self.tables if not table.is_empty],
            "ledger_rows": len(self.ledger),
            "left_alone": list(self.left[:LEFT_MAX]),
        }


@frozen(kw_only=True)
class RepairReport:
    """What was found, what was done, and what a second look says."""

    before: VerifyReport
    plan: RepairPlan
    dry_run: bool
    sent_rows: int = 0
    removed_rows: int = 0
    """From T_log in the sink, archived in removed_rows."""
    log_rows: int = 0
    """Put back into the log, or removed from it."""
    state_rows: int = 0
    """Removed from T_state in the sink, or renewed in DuckDB's."""
    rounds: int = 0
    after: VerifyReport | None = field(default=None)

    @property
    def mismatches(self) -> int:
        """What is at fault now."""
        return (self.after or self.before).mismatches

    def as_json(self) -> dict[str, Any]:
        return {
            "dry_run": self.dry_run,
            "mismatches": self.mismatches,
            "plan": self.plan.as_json(),
            "sent_rows": self.sent_rows,
            "removed_rows": self.removed_rows,
            "log_rows": self.log_rows,
            "state_rows": self.state_rows,
            "rounds": self.rounds,
            "before": self.before.as_json(),
            "after": self.after.as_json() if self.after else None,
        }


def plan_for(report: VerifyReport) -> RepairPlan:
    """What mends a report's findings."""
    lying = {p.batch for table in report.tables for p in table.problems if p.invariant is Invariant.RECORD}
    ledger = (Invariant.LEDGER_WHOLE, Invariant.LEDGER_TRUE)
    problems = [*report.problems, *(p for table in report.tables for p in table.problems)]
    return RepairPlan(
        tables=tuple(_table_plan(table, report.problems) for table in report.tables),
        ledger=tuple(p.batch for p in problems if p.invariant in ledger and p.batch and p.batch not in lying),
        left=tuple(_left(report, problems)),
    )


def _table_plan(table: TableResult, common: Sequence[Problem]) -> TablePlan:
    problems = [*table.problems, *(p for p in common if p.table == table.table)]
    named = {kind: tuple(p.batch for p in problems if p.invariant is kind and p.batch) for kind in Invariant}
    fetched = table.offsets_of(Side.LOG, Difference.MISSING, Difference.DIFFERENT)
    return TablePlan(
        table=table.table,
        make=any(p.invariant is Invariant.EXISTS for p in problems),
        log_fetch=tuple(fetched),
        log_remove=tuple(table.offsets_of(Side.LOG, Difference.EXTRA)),
        log_single=tuple(table.offsets_of(Side.LOG, Difference.DOUBLED)),
        resend=tuple(table.offsets_of(Side.SINK, Difference.MISSING, Difference.DIFFERENT)),
        sink_single=tuple(table.offsets_of(Side.SINK, Difference.DOUBLED)),
        sink_remove=tuple(table.offsets_of(Side.SINK, Difference.EXTRA)),
        sink_state=tuple(fault for fault in table.state if fault.side is Side.SINK),
        log_state=tuple(fault for fault in table.state if fault.side is Side.LOG),
        records=named[Invariant.RECORD],
        cover=named[Invariant.COVERED],
        checkpoint=any(p.invariant is Invariant.CHECKPOINT for p in problems),
    )


def _left(report: VerifyReport, problems: Sequence[Problem]) -> list[str]:
    left = [
        f"{table.table}: {len(fault.offsets)} offsets are {fault.kind}, and neither side adds up to what was frozen"
        for table in report.tables
        for fault in table.faults
        if fault.side is Side.UNKNOWN
    ]
    left += [f"{p.invariant}: {p.detail}" for p in problems if p.invariant is Invariant.BEYOND]
    return left + [_breaks_left(table) for table in report.tables if table.breaks and _breaks_alone(table)]


def _breaks_alone(table: TableResult) -> bool:
    """Whether the sums differ and nothing is at fault whose repair would mend them."""
    return not (table.rows_at_fault or table.state or any(p.invariant is Invariant.EXISTS for p in table.problems))


def _breaks_left(table: TableResult) -> str:
    return (
        f"{table.table}: {len(table.breaks)} of its declared sums differ, and no row or key was found at fault: compare "
        "again with all offsets and without --quick, which takes the log for right; if they stay, "
        f"`replicator rebuild {table.table}` makes the table anew from the log"
    )

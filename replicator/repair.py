"""Repair: make log and sink agree again where verify found that they do not, on the side that is at fault.

Guarantees: the log is never sent over a sink that is right, nor the sink fetched over a log that is; exactly what is at
fault is touched, then everything is compared again. Never moves a checkpoint forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog
from attrs import define, evolve

from replicator.catalog import Catalog
from replicator.controls import record_action
from replicator.database import Session, now, statement
from replicator.errors import DatabaseUnavailable, SinkMisshapen
from replicator.lanes import Lane
from replicator.model import GENERIC_LANE, OffsetRange
from replicator.repair_log import LogMender
from replicator.repair_plan import RepairPlan, RepairReport, TablePlan, plan_for
from replicator.repair_sink import SinkMender, checksum_of
from replicator.sink import ClickHouseSink, LedgerRow
from replicator.verify import Progress, Verifier
from replicator.verify_report import Batch, VerifyRequest
from replicator.words import counted

ROUNDS_MAX = 4
"""What was hidden behind a fault shows when that is mended."""
CONFLICT_SECONDS = (0.05, 0.2, 0.5, 1, 2)
T = TypeVar("T")

log = structlog.get_logger(__name__)


@define
class Repairer:
    """Mends with a session of its own, beside the loops. ``next_send`` hands out send numbers durably."""

    session: Session
    sink: ClickHouseSink
    catalog: Catalog
    verifier: Verifier
    pipeline: str
    instance_id: str
    timeline: int
    next_send: Callable[[], int]

    def repair(
        self, request: VerifyRequest, *, actor: str, dry_run: bool = False, progress: Progress | None = None
    ) -> RepairReport:
        """Verify, mend, verify again. A dry run only says what it would do."""
        before = self.verifier.verify(request, progress)
        plan = plan_for(before)
        report = RepairReport(before=before, plan=plan, dry_run=dry_run)
        if dry_run or plan.is_empty:
            return report
        after, rounds = before, 0
        sink = SinkMender(
            session=self.session,
            sink=self.sink,
            pipeline=self.pipeline,
            timeline=self.timeline,
            next_send=self.next_send,
        )
        mender = LogMender(session=self.session, sink=self.sink, pipeline=self.pipeline)
        while rounds < ROUNDS_MAX:
            todo = plan_for(after)
            if todo.is_empty:
                break
            self._mend(todo, sink, mender)
            rounds += 1
            after = self.verifier.verify(request, progress)
        report = evolve(
            report,
            sent_rows=sink.sent_rows,
            removed_rows=sink.removed_rows,
            log_rows=mender.log_rows,
            state_rows=sink.state_rows + mender.state_rows,
            rounds=rounds,
            after=after,
            plan=evolve(plan, left=plan_for(after).left),
        )
        effect = (
            f"{counted(before.mismatches, 'mismatch', 'mismatches')}: sent {report.sent_rows}, removed {report.removed_rows}, put right "
            f"{report.log_rows} in the log and {report.state_rows} keys; {after.mismatches} left"
        )
        self._settled(
            lambda: record_action(self.session, actor, "repair", ", ".join(request.tables) or "all tables", effect)
        )
        log.info("repaired", sent=report.sent_rows, removed=report.removed_rows, left=after.mismatches)
        return report

    def _mend(self, plan: RepairPlan, sink: SinkMender, mender: LogMender) -> None:
        for table in plan.tables:
            self._mend_log(table, mender)
        for table in plan.tables:
            if table.make:
                self._make(table.table)
            self._mend_sink(table, sink)
            self._mend_state(table, sink, mender)
            self._mend_records(table, sink)
        self._mend_ledger(plan.ledger)

    # ── rows ──

    def _mend_log(self, plan: TablePlan, mender: LogMender) -> None:
        for lane in self._lanes(plan.table):
            self._settled(lambda lane=lane: mender.remove(lane, plan.log_remove))  # type: ignore[misc]
            self._settled(lambda lane=lane: mender.make_single(lane, plan.log_single))  # type: ignore[misc]
            self._settled(lambda lane=lane: mender.fetch_back(lane, plan.log_fetch))  # type: ignore[misc]

    def _mend_sink(self, plan: TablePlan, sink: SinkMender) -> None:
        lanes = self._lanes(plan.table)
        if plan.sink_remove:
            keys = sink.remove(lanes[-1], plan.sink_remove)
            schema = self.verifier.schema(plan.table)
            if schema is not None:
                sink.renew_keys(lambda version: self.catalog.lane(plan.table, version), schema, keys)
        for lane in lanes:
            sink.resend(lane, plan.resend)
            send = sink.resend(lane, plan.sink_single)
            if send:
                sink.remove_older(lane, plan.sink_single, send)

    def _mend_state(self, plan: TablePlan, sink: SinkMender, mender: LogMender) -> None:
        schema = self.verifier.schema(plan.table)
        if schema is None:
            return
        if plan.log_state:
            self._settled(lambda: mender.renew_state(schema, plan.log_state))
        if plan.sink_state:
            sink.renew_state(lambda version: self.catalog.lane(plan.table, version), schema, plan.sink_state)

    def _lanes(self, name: str) -> list[Lane]:
        """The table's lanes, one per schema version, oldest first."""
        versions = [0] if name == GENERIC_LANE else [schema.schema_version for schema in self.catalog.history(name)]
        return [self.catalog.lane(name, version) for version in versions]

    def _make(self, name: str) -> None:
        """Make what is missing of the table's places in ClickHouse. Raises SinkMisshapen where one has another shape."""
        try:
            self.catalog.ensure(self.sink, self.catalog.lane(name, 0))
        except SinkMisshapen:  # they had been there: now the catalog knows that they have to be made anew
            self.catalog.ensure(self.sink, self.catalog.lane(name, 0))

    # ── records ──

    def _mend_records(self, plan: TablePlan, sink: SinkMender) -> None:
        for batch in plan.records:
            self._correct_record(batch)
        for batch in plan.cover:
            self._cover(batch, sink)
        if plan.checkpoint:
            self._settled(lambda: self.session.execute(statement("verify/lower_checkpoint"), {"table": plan.table}))

    def _correct_record(self, batch: Batch) -> None:
        """A batch's record takes the checksum that both sides hold, where the sink's ledger says the same."""
        held = self._held(batch)
        if held is None:
            return
        rows, checksum = held
        sql = (
            "select count() from replicator_batches final where pipeline = {pipeline:String} and table_name = {table:String} "
            "and first_offset = {first:Int64} and last_offset = {last:Int64} and checksum = {checksum:String}"
        )
        where = {"pipeline": self.pipeline, "table": batch.table, "first": batch.first, "last": batch.last}
        if self.sink.scalar(sql, {**where, "checksum": checksum}):
            parameters = {
                "table": batch.table,
                "first": batch.first,
                "last": batch.last,
                "checksum": checksum,
                "rows": rows,
            }
            self._settled(lambda: self.session.execute(statement("verify/correct_record"), parameters))

    def _held(self, batch: Batch) -> tuple[int, str] | None:
        """Rows and checksum of the batch as the log holds it."""
        found = self.session.row(
            statement("verify/batch"), {"table": batch.table, "first": batch.first, "last": batch.last}
        )
        if found is None:
            return None
        lane = self.catalog.lane(batch.table, found[4])
        rows = self.session.arrow(lane.batch_sql, {"first": batch.first, "last": batch.last})
        checksum = checksum_of(rows)
        return checksum.rows, str(checksum)

    def _cover(self, batch: Batch, sink: SinkMender) -> None:
        """Send a range that no batch covers, then record it as one."""
        offsets = OffsetRange(first=batch.first, last=batch.last)
        for lane in self._lanes(batch.table):
            table = self.session.arrow(
                f"from ({lane.batch_sql}) order by {lane.offset_column}", {"first": batch.first, "last": batch.last}
            )
            if not table.num_rows:
                continue
            sent = sink.send(lane, offsets, table)
            row = {"table": batch.table, "first": batch.first, "last": batch.last, "rows": table.num_rows, "at": now()}
            row |= {"checksum": str(checksum_of(table)), "schema_version": lane.schema_version}
            row["send_seq"] = sent & ((1 << 48) - 1)
            self._settled(lambda row=row: self.session.execute(statement("verify/cover"), row))  # type: ignore[misc]

    def _mend_ledger(self, batches: Sequence[Batch]) -> None:
        rows = []
        for batch in batches:
            where = {"table": batch.table, "first": batch.first, "last": batch.last}
            found = self.session.row(statement("verify/batch"), where)
            if found is not None:
                rows.append(self._ledger_row(batch, found))
            else:
                self._remove_ledger_row(batch)
        if rows:
            self.sink.record(rows)

    def _remove_ledger_row(self, batch: Batch) -> None:
        """A row of the ledger that is no batch of ours."""
        sql = (
            "delete from replicator_batches where pipeline = {pipeline:String} and table_name = {table:String} "
            "and first_offset = {first:Int64} and last_offset = {last:Int64}"
        )
        where = {"pipeline": self.pipeline, "table": batch.table, "first": batch.first, "last": batch.last}
        self.sink.command(sql, parameters=where)

    def _ledger_row(self, batch: Batch, found: Sequence[object]) -> LedgerRow:
        row_count, checksum, send_seq = found[:3]
        return LedgerRow(
            pipeline=self.pipeline,
            table_name=batch.table,
            first_offset=batch.first,
            last_offset=batch.last,
            row_count=int(str(row_count)),
            checksum=str(checksum),
            status="delivered",
            send_seq=int(str(send_seq)),
            timeline=self.timeline,
            instance_id=self.instance_id,
            query_id="",
            delivered_at=now(),
        )

    def _settled(self, write: Callable[[], T]) -> T:
        """Do a short write again while it meets another of the loops' transactions."""
        for seconds in CONFLICT_SECONDS:
            try:
                return write()
            except DatabaseUnavailable as error:
                if error.code != "conflict":
                    raise
                time.sleep(seconds)
        return write()

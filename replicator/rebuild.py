"""Rebuild: make a table in ClickHouse anew from the log, and put it in the old one's place in one step.

Guarantees: the live stream goes on but for the last moments; readers never see fewer rows; nothing is put in place
that was not compared with the log first; after a kill the next start, or the next rebuild, ends or clears what was
begun. It is also the way to a declaration that no ALTER leads to, where everything logged fits it. Never reads Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

import structlog
from attrs import define, field, frozen

from replicator.catalog import Catalog
from replicator.controls import record_action
from replicator.database import Session, statement
from replicator.errors import ReplicatorError, SinkMisshapen, UsageError
from replicator.failpoints import failpoint
from replicator.model import Checksum, OffsetRange
from replicator.rebuild_copy import Copy
from replicator.rebuild_shape import Fitting, Shape, Switch, shape_of, sums_by_batch
from replicator.rebuild_swap import COPYING, EXCHANGING, KEPT, Begun, Swap
from replicator.refetch import fetch
from replicator.schema import TableSchema, quote_clickhouse
from replicator.sink import ClickHouseSink
from replicator.typed import log_rows_sql

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class RebuildPlan:
    """What a rebuild takes. ``low`` is the first offset that the log still holds."""

    table: str
    shape: Shape
    low: int
    checkpoint: int
    log_rows: int
    held_rows: int
    """To be read from the old table: the log no longer holds them."""
    fitting: Fitting
    """What is known of how the changes fit the new shape."""
    problems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "safe": not self.problems,
            "changes": self.shape.changes,
            "schema_version": self.shape.newest.schema_version,
            "checkpoint_offset": self.checkpoint,
            "rows_from_log": self.log_rows,
            "rows_from_old_table": self.held_rows,
            "problems": list(self.problems),
        }


@define(kw_only=True)
class Rebuilder:
    """Rebuilds with a session of its own.

    ``nothing_sent`` holds up delivery, and ``nothing_appended`` capture, for a block. ``record_again`` writes the
    ledger's rows of a table anew, and takes out those behind its checkpoint.
    """

    session: Session
    sink: ClickHouseSink
    catalog: Catalog
    pipeline: str
    failed_table: str
    copy: Callable[[Shape, list[OffsetRange]], Copy]
    nothing_sent: Callable[[], AbstractContextManager[None]]
    nothing_appended: Callable[[], AbstractContextManager[None]]
    record_again: Callable[[Session, str], None]
    swap: Swap = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.swap = Swap(session=self.session, sink=self.sink, catalog=self.catalog)

    # ── what it takes ──

    def plan(self, table: str, wanted: TableSchema | None) -> RebuildPlan:
        """Raises UsageError for a table that is not declared."""
        history = self.catalog.history(table)
        if not history:
            raise UsageError(f"{table} is no declared table", hint=f"there are {', '.join(self.catalog.current)}")
        shape = shape_of(history, wanted)
        checkpoint = self._checkpoint(table)
        row = self.session.row("select coalesce(min(log_offset), 1) from change_log")
        low = int(row[0]) if row else 1
        held, problems = self._in_sink(shape, low)
        fitting = Fitting(session=self.session, shape=shape, looked_through=low - 1)
        if shape.reshaped and not problems:
            problems += self._misfits(fitting, low, held)
        return RebuildPlan(
            table=table,
            shape=shape,
            low=low,
            checkpoint=checkpoint,
            log_rows=self._logged(table, checkpoint, self._known(table)),
            held_rows=held,
            fitting=fitting,
            problems=tuple(problems),
        )

    def _checkpoint(self, table: str) -> int:
        row = self.session.row("select log_offset from checkpoints where table_name = ?", [table])
        return row[0] if row else 0

    def _in_sink(self, shape: Shape, low: int) -> tuple[int, list[str]]:
        """Rows below ``low`` that the old table has, and what stands against replacing it."""
        if why := self.sink.why_not_exchanged():
            return 0, [why]
        old, existing = shape.old, self.sink.columns_of([shape.old.log_name, shape.old.state_name])
        problems, held = [], 0
        where = {"pipeline": self.pipeline, "low": low}
        for name in existing:
            sql = f"select count() from {quote_clickhouse(name)} where _pipeline != {{pipeline:String}}"
            if self.sink.scalar(sql, where):
                problems.append(f"{name} also holds rows of other pipelines, which would be lost")
        if low > 1 and len(existing) == 2:
            log, state = quote_clickhouse(old.log_name), quote_clickhouse(old.state_name)
            mine = "_pipeline = {pipeline:String} and _offset < {low:Int64}"
            held = int(self.sink.scalar(f"select uniqExact(_offset) from {log} where {mine}", where))
            gone = (
                f"select count() from {state} where {mine} and _offset not in (select _offset from {log} where {mine})"
            )
            if shape.reshaped and self.sink.scalar(gone, where):
                problems.append(
                    "changes of current rows are left neither in the log nor in T_log: they cannot be typed anew"
                )
        elif low > 1:
            problems.append(f"the log begins at offset {low}, and the old table is not there to give what came before")
        return held, problems

    def _misfits(self, fitting: Fitting, low: int, held: int) -> list[str]:
        fitting.begin()
        copy = self.copy(fitting.shape, [])
        for offsets, changes in copy.held(low) if held else ():
            with self.session.relation(held_changes=changes):
                fitting.look("held_changes", offsets.first, offsets.last)
        fitting.look_at_log(self._head())
        return fitting.problems()

    def _head(self) -> int:
        row = self.session.row("select coalesce(max(log_offset), 0) from change_log")
        return int(row[0]) if row else 0

    # ── doing it ──

    def rebuild(self, plan: RebuildPlan, *, actor: str) -> dict[str, Any]:
        """Copy, compare, put in place. Raises SinkMisshapen where that is not possible, and then nothing was changed."""
        if plan.problems:
            raise SinkMisshapen(
                f"{plan.table} cannot be rebuilt: {'; '.join(plan.problems)}",
                hint="`replicator rebuild --dry-run` shows the plan",
            )
        self.settle(plan.table)
        known = self._known(plan.table)
        copy = self.copy(plan.shape, known)
        self.swap.make(plan.shape.newest, reshaped=plan.shape.reshaped, actor=actor)
        try:
            self._fill(plan, copy)
            with self.nothing_sent():
                self._take_place(plan, copy, known)
        except ReplicatorError:
            if any(begun.table == plan.table for begun in self.swap.begun(COPYING)):
                self.swap.abandon(plan.table)
            raise
        rows = sum(each.checksum.rows for each in copy.sent)
        effect = f"{rows} rows copied and compared; {'; '.join(plan.shape.changes) or 'the same shape'}"
        record_action(self.session, actor, "rebuild", plan.table, effect)
        log.info("rebuilt", table=plan.table, rows=rows)
        return {"copied_rows": rows}

    def _known(self, table: str) -> list[OffsetRange]:
        sql = (
            f"select first_offset, last_offset from {self.failed_table} "
            "where table_name = ? and status in ('open', 'discarded') order by 1"
        )
        return [OffsetRange(first=first, last=last) for first, last in self.session.rows(sql, [table])]

    def _fill(self, plan: RebuildPlan, copy: Copy) -> None:
        """All that was delivered when it began, while the stream goes on."""
        if plan.low > 1:
            copy.from_old_table(plan.low)
        if plan.checkpoint >= plan.low:
            copy.from_log(OffsetRange(first=plan.low, last=plan.checkpoint))
        copy.check()
        failpoint("rebuild.copied")

    def _take_place(self, plan: RebuildPlan, copy: Copy, known: list[OffsetRange]) -> None:
        """With nothing sent any more: what was sent meanwhile, then the exchange."""
        checkpoint, done = self._checkpoint(plan.table), len(copy.sent)
        if self._known(plan.table) != known:
            raise SinkMisshapen(f"changes of {plan.table} were parked meanwhile", hint="rebuild again")
        self._look(plan)
        last = max(checkpoint, self._top(plan.shape.old))
        if last > max(plan.checkpoint, plan.low - 1):
            copy.from_log(OffsetRange(first=max(plan.checkpoint + 1, plan.low), last=last))
            copy.check(done)
        copy.check_whole(last, plan.held_rows + self._logged(plan.table, last, known))
        if plan.shape.reshaped:
            self._switch(plan, copy, checkpoint)
        else:
            self.swap.move(plan.table, COPYING, EXCHANGING)
        [begun] = [each for each in self.swap.begun(EXCHANGING) if each.table == plan.table]
        self._finish(begun)

    def _top(self, schema: TableSchema) -> int:
        """The last offset that was sent and is there, if not recorded yet: readers have seen it."""
        row = self.session.row("select max(last_offset) from sync_batches where table_name = ?", [schema.name])
        where = {"pipeline": self.pipeline, "frozen": (row[0] if row else None) or 0}
        sql = (
            f"select max(_offset) from {quote_clickhouse(schema.log_name)} "
            "where _pipeline = {pipeline:String} and _offset <= {frozen:Int64}"
        )
        try:
            return int(self.sink.scalar(sql, where))
        except SinkMisshapen:  # it was dropped
            return 0

    def _look(self, plan: RebuildPlan) -> None:
        """What was logged since the last look has to fit, too."""
        if plan.shape.reshaped:
            plan.fitting.look_at_log(self._head())
            problems = plan.fitting.problems()
            if problems:
                raise SinkMisshapen(f"{plan.table} cannot be rebuilt any more: {'; '.join(problems)}")

    def _logged(self, table: str, checkpoint: int, known: list[OffsetRange]) -> int:
        """How many of the table's changes in the log have been delivered."""
        where = {"table": table, "last": checkpoint}
        ranges = {"firsts": [r.first for r in known], "lasts": [r.last for r in known]}
        row = self.session.row(statement("rebuild/delivered"), where | ranges)
        return int(row[0]) if row else 0

    def _switch(self, plan: RebuildPlan, copy: Copy, checkpoint: int) -> None:
        """The file takes the new shape, in one transaction that also decides for the exchange."""
        shape = plan.shape
        checksums = {**copy.checksums, **self._checksums(copy, plan.low, checkpoint)}
        base = self._base(copy, plan.low) if plan.low > 1 else None
        with self.nothing_appended(), self.catalog.shaping:
            self._look(plan)
            switch = Switch(shape=shape, checksums=checksums, base=base, folded=plan.low - 1)
            with self.session.transaction():
                switch.make(self.session)
                self.swap.move(plan.table, COPYING, EXCHANGING)
            self.catalog.take_rebuilt(shape.newest)

    def _checksums(self, copy: Copy, low: int, checkpoint: int) -> dict[str, Checksum]:
        """By delivered batch, under the new shape."""
        found: dict[str, Checksum] = {}
        for schema in copy.shape.history:
            lane = copy.lane(schema.schema_version)
            if checkpoint >= low:
                offsets = OffsetRange(first=low, last=checkpoint)
                found |= sums_by_batch(self.session, lane.batch_sql, lane.offset_column, offsets, copy.shape.old.name)
        return found

    def _base(self, copy: Copy, low: int) -> Any:
        """The rows of T_state that follow from changes which the log no longer holds, typed anew."""
        stand_in, old = copy.stand_in, copy.shape.old
        sql = (
            f"select _offset from {quote_clickhouse(stand_in + '_state')} final "
            "where _pipeline = {pipeline:String} and _offset < {low:Int64}"
        )
        offsets = [at for (at,) in self.sink.rows(sql, {"pipeline": self.pipeline, "low": low})]
        changes = fetch(self.sink, self.pipeline, old.name, old.log_name, "_offset", offsets)
        with self.session.relation(held_changes=changes):
            return self.session.arrow(log_rows_sql(copy.shape.history, copy.shape.source("held_changes")))

    def _finish(self, begun: Begun) -> None:
        self.swap.finish(begun)
        if begun.reshaped:
            self.record_again(self.session, begun.table)

    # ── what was cut short ──

    def settle(self, table: str | None = None, running: Collection[str] = ()) -> None:
        """End rebuilds that were cut short after the decision; clear away those before it. Call with nothing sent.

        With ``table`` only its own, and also the old table that an earlier rebuild has kept; never those ``running``.
        """
        for begun in self.swap.begun(COPYING, EXCHANGING, *((KEPT,) if table else ())):
            if begun.table in running or table not in (None, begun.table):
                continue
            if begun.stage == EXCHANGING:
                self._finish(begun)
                log.warning("rebuild_finished", table=begun.table)
            elif begun.stage == COPYING:
                self.swap.abandon(begun.table)
                log.warning("rebuild_abandoned", table=begun.table)
            else:
                self.swap.drop_kept(begun.table)

"""Rebuild as the service and the command run it, and what is settled at a start that a rebuild did not live to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from attrs import define, frozen

from replicator.catalog import declared_schema
from replicator.deliver_work import BATCH_BYTES_MAX
from replicator.errors import ConfigError, SinkMisshapen
from replicator.model import OffsetRange
from replicator.rebuild import Rebuilder
from replicator.rebuild_copy import Copy
from replicator.rebuild_shape import Shape
from replicator.rebuild_swap import KEPT
from replicator.service_job import REBUILD, Job, Jobs
from replicator.service_replay import resender

if TYPE_CHECKING:
    from replicator.config import Settings
    from replicator.database import Session
    from replicator.service import Service
    from replicator.verify import Progress
    from replicator.verify_report import VerifyReport

LEDGER_ROWS = 10_000

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class RebuildTask:
    """``settings``: the configuration as it is on disk now, which may declare the table otherwise."""

    table: str
    settings: Settings
    dry_run: bool = False
    actor: str = ""


@define
class Rebuilding:
    """Rebuilds for one service, whose loops need not be running."""

    service: Service
    jobs: Jobs

    def start(self, task: RebuildTask) -> Job:
        """In a thread of its own. Raises UsageError while something else runs that it would disturb."""
        return self.jobs.start(REBUILD, partial(self._work, task))

    def run(self, task: RebuildTask, watch: Callable[[Progress], None] = lambda _: None) -> dict[str, Any]:
        """Here and now; raises what it raises."""
        return self.jobs.run(REBUILD, partial(self._work, task), watch)

    def _work(self, task: RebuildTask, session: Session, job: Job) -> dict[str, Any]:
        wanted = [declared_schema(t) for t in task.settings.tables if t.name == task.table]
        rest = partial(self.jobs.rest, job)
        rebuilder = build_rebuilder(self.service, session, rest, copied=job.progress.compared)
        job.progress.what = task.table
        plan = rebuilder.plan(task.table, wanted[0] if wanted else None)
        if task.dry_run:
            session.execute("delete from rebuild_keys where table_name = ?", [task.table])
            return {"dry_run": True, **plan.as_json()}
        job.progress.rows_expected = plan.log_rows + plan.held_rows
        self.service.rebuilding.add(task.table)
        try:
            done = rebuilder.rebuild(plan, actor=task.actor)
        finally:
            self.service.rebuilding.discard(task.table)
        with suppress(ConfigError):  # another table's edit may still be refused: a reload says so
            self.service.reload(task.settings)
        return {"dry_run": False, **plan.as_json(), **done}


def build_rebuilder(
    service: Service,
    session: Session,
    rest: Callable[[float], None],
    copied: Callable[[int], None] = lambda _: None,
) -> Rebuilder:
    settings, worker = service.settings, service.deliver.worker

    def copy(shape: Shape, known: Sequence[OffsetRange]) -> Copy:
        return Copy(
            session=session,
            sink=service.sink,
            resender=resender(service, session, rest),
            prepare=lambda lane, offsets, version: worker.prepare(lane, offsets, version, BATCH_BYTES_MAX),
            shape=shape,
            pipeline=settings.pipeline.name,
            batch_rows=settings.writer.sync.batch_size,
            known=known,
            copied=copied,
        )

    return Rebuilder(
        session=session,
        sink=service.sink,
        catalog=service.catalog,
        pipeline=settings.pipeline.name,
        failed_table=service.ledger.failed_table,
        copy=copy,
        nothing_sent=partial(_nothing_sent, service),
        nothing_appended=service.capture.between_appends,
        record_again=partial(_record_again, service),
    )


@contextmanager
def _nothing_sent(service: Service) -> Iterator[None]:
    """Nor is anything of an earlier process still on its way."""
    with service.reconciler.nothing_sent("a table is being rebuilt"):
        service.reconciler.standing.await_stillness(service.stop)
        yield


def _record_again(service: Service, session: Session, table: str) -> None:
    """The ledger's rows of a table's delivered batches, as the file has them now."""
    standing, failed = service.reconciler.standing, service.ledger.failed_table
    row = session.row("select log_offset from checkpoints where table_name = ?", [table])
    standing.forget_behind(table, row[0] if row else 0)
    parked = set(
        session.rows(f"select first_offset, last_offset from {failed} where table_name = ? and status <> 'resolved'", [table])
    )  # fmt: skip
    batches = service.ledger.delivered(session, table)
    rows = [
        service.deliver.recorder.row(batch, "delivered", "")
        for batch in batches
        if (batch.offsets.first, batch.offsets.last) not in parked
    ]
    for at in range(0, len(rows), LEDGER_ROWS):
        service.sink.record(rows[at : at + LEDGER_ROWS])


def settle_rebuilds(service: Service) -> None:
    """Before anything is sent: end or clear away what an earlier process has begun."""
    session = service.database.session()
    try:
        row = session.row("select count(*) from rebuilds where stage in ('copying', 'exchanging')")
        if row and row[0]:
            rebuilder = build_rebuilder(service, session, lambda _: None)
            rebuilder.settle(running=service.rebuilding)
    finally:
        session.close()


def drop_kept(service: Service, session: Session, report: VerifyReport) -> None:
    """Old tables that rebuilt ones have replaced go when the rebuilt ones were found right."""
    right = {table.table for table in report.tables if not table.count}
    rows = session.rows("select distinct table_name from rebuilds where stage = ?", [KEPT])
    swap = build_rebuilder(service, session, lambda _: None).swap
    for table in {name for (name,) in rows} & right:
        try:
            swap.drop_kept(table)
        except SinkMisshapen as error:
            log.warning("old_table_not_dropped", table=table, error=str(error))

"""Verify and repair as the service and the commands run them: one at a time, on request or on a schedule, and remembered.

Guarantees: a comparison on a schedule leaves at least half of the time to everybody else; what `status` shows of the
last one is what it found, and survives a restart. Never holds up a stop for longer than one query.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from attrs import define, frozen

from replicator.database import Session
from replicator.errors import ReplicatorError
from replicator.repair import Repairer
from replicator.service_job import VERIFY, Job, Jobs
from replicator.service_rebuild import drop_kept
from replicator.status_file import VERIFY_LAST, read_last_verify
from replicator.verify import Progress, Verifier
from replicator.verify_report import VerifyReport, VerifyRequest

if TYPE_CHECKING:
    from replicator.service import Service

POLL_SECONDS = 1.0
RETRY_SECONDS = 60.0
REREAD_SECONDS = 86_400.0
"""How often a scheduled comparison reads the log again, too; between, it takes the frozen checksums for the log's."""

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class Task:
    """What is to be run."""

    request: VerifyRequest
    repair: bool = False
    dry_run: bool = False
    actor: str = ""
    paced: bool = False
    """Whether it waits between its queries for as long as they take, and makes room for what somebody asks for."""


@define
class Verification:
    """Runs tasks for one service; ``service`` need not be running its loops."""

    service: Service
    jobs: Jobs
    _reread_at: float = 0.0

    def start(self, task: Task) -> Job:
        """Run a task in a thread of its own. Raises UsageError while another one runs."""
        return self.jobs.start(VERIFY, partial(self._result, task))

    def run(self, task: Task, watch: Callable[[Progress], None] = lambda _: None) -> dict[str, Any]:
        """Run a task here and now; ``watch`` is called as it goes on. Raises what it raises."""
        return self.jobs.run(VERIFY, partial(self._result, task), watch, yields=task.paced)

    def _result(self, task: Task, session: Session, job: Job) -> dict[str, Any]:
        verifier = self.verifier(session)
        if task.paced:
            job.progress.step = lambda seconds: self.jobs.rest(job, seconds)
        if not task.repair:
            report = verifier.verify(task.request, job.progress)
            self._remember(session, report)
            return report.as_json()
        mended = self.repairer(session, verifier).repair(
            task.request, actor=task.actor, dry_run=task.dry_run, progress=job.progress
        )
        self._remember(session, mended.after or mended.before)
        return mended.as_json()

    def verifier(self, session: Session) -> Verifier:
        service = self.service
        return Verifier(
            session=session,
            sink=service.sink,
            catalog=service.catalog,
            pipeline=service.settings.pipeline.name,
            failed_table=service.ledger.failed_table,
        )

    def repairer(self, session: Session, verifier: Verifier) -> Repairer:
        service = self.service
        return Repairer(
            session=session,
            sink=service.sink,
            catalog=service.catalog,
            verifier=verifier,
            pipeline=service.settings.pipeline.name,
            instance_id=service.instance_id,
            timeline=service.changelog.timeline,
            next_send=lambda: service.ledger.next_send(session),
        )

    # ── what is remembered ──

    def _remember(self, session: Session, report: VerifyReport) -> None:
        """Of a comparison of everything: `status` shows it until the next one."""
        if report.request.whole:
            drop_kept(self.service, session, report)
        if report.request.tables or not report.request.whole:
            return
        before = read_last_verify(session)
        at = report.finished_at.replace(tzinfo=UTC).timestamp()
        success = before.get("success_at") if report.mismatches else at
        told = {"at": at, "mismatches": report.mismatches, "rows": report.rows, "success_at": success}
        reached = {t.table: t.offsets.last for t in report.tables if t.offsets} if not report.mismatches else {}
        told["through"] = before.get("through", {}) | reached
        told["tables"] = {table.table: table.count for table in report.tables}
        with session.transaction():
            session.execute("delete from meta where key = ?", [VERIFY_LAST])
            session.execute("insert into meta values (?, ?)", [VERIFY_LAST, json.dumps(told)])

    # ── the schedule ──

    def run_scheduled(self) -> None:
        """Compare every ``[verify] interval_sec`` until the service stops; nothing where that is 0."""
        stop, interval = self.service.stop, self.service.settings.verify.interval_sec
        session = self.service.database.session()
        due = self._first_due(session, interval)
        session.close()
        while not stop.wait(POLL_SECONDS):
            if interval and time.time() >= due:
                wait = interval if self._scheduled() else min(RETRY_SECONDS, interval)
                due = time.time() + wait  # from its end: between two comparisons retention has its turn

    def _first_due(self, session: Session, interval: float) -> float:
        """An interval after the last one, so that restarts neither hurry nor starve it."""
        return (read_last_verify(session).get("at") or time.time()) + interval

    def _scheduled(self) -> bool:
        """One comparison on schedule. Returns whether it came to its end."""
        reread = time.time() - self._reread_at >= REREAD_SECONDS
        age = self.service.settings.verify.watermark_age_sec
        try:
            request = VerifyRequest(reread_log=reread, watermark_age_seconds=age)
            self.run(Task(request=request, paced=True))
        except ReplicatorError as error:
            log.warning("verify_put_off", error=str(error))
            return False
        if reread:
            self._reread_at = time.time()
        return True

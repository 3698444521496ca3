"""Verify and repair as the service and the commands run them: one at a time, on request or on a schedule, and remembered.

Guarantees: a comparison on a schedule leaves at least half of the time to everybody else; what `status` shows of the
last one is what it found, and survives a restart. Never holds up a stop for longer than one query.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC
from typing import TYPE_CHECKING, Any

import structlog
from attrs import define, field, frozen

from replicator.database import Session
from replicator.errors import ReplicatorError, UsageError
from replicator.repair import Repairer
from replicator.status_file import VERIFY_LAST, read_last_verify
from replicator.verify import Progress, Verifier
from replicator.verify_report import VerifyReport, VerifyRequest

if TYPE_CHECKING:
    from replicator.service import Service

PACE_SECONDS_MAX = 5.0
POLL_SECONDS = 1.0
RETRY_SECONDS = 60.0
REREAD_SECONDS = 86_400.0
"""How often a scheduled comparison reads the log again, too; between, it takes the frozen checksums for the log's."""

log = structlog.get_logger(__name__)


class Cancelled(ReplicatorError):
    """Somebody ended the comparison, or the service stops."""


@frozen(kw_only=True)
class Task:
    """What is to be run."""

    request: VerifyRequest
    repair: bool = False
    dry_run: bool = False
    actor: str = ""
    paced: bool = False
    """Whether it waits between its queries for as long as they take."""


@define
class Job:
    """A task under way, and then its result."""

    task: Task
    id: str = field(factory=lambda: uuid.uuid4().hex[:12])
    progress: Progress = field(factory=Progress)
    state: str = "running"
    result: dict[str, Any] | None = None
    error: ReplicatorError | None = None
    cancelled: bool = False
    started_at: float = field(factory=time.time)
    done: threading.Event = field(factory=threading.Event)

    def as_json(self) -> dict[str, Any]:
        error = self.error
        return {
            "id": self.id,
            "state": self.state,
            "what": self.progress.what,
            "rows": self.progress.rows,
            "rows_expected": self.progress.rows_expected,
            "seconds": round(time.time() - self.started_at, 3),
            "result": self.result,
            "error": None if error is None else {"kind": kind(error), "message": error.message, "hint": error.hint},
        }


def kind(error: ReplicatorError) -> str:
    """The error's name as the HTTP interface spells it."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


@define
class Verification:
    """Runs tasks for one service; ``service`` need not be running its loops."""

    service: Service
    job: Job | None = None
    """The latest."""
    _lock: threading.Lock = field(factory=threading.Lock)
    _reread_at: float = 0.0

    def start(self, task: Task) -> Job:
        """Run a task in a thread of its own. Raises UsageError while another one runs."""
        job = self._taken(task)
        threading.Thread(target=self._run, args=(job,), name="verify-job", daemon=True).start()
        return job

    def run(self, task: Task, watch: Callable[[Progress], None] = lambda _: None) -> dict[str, Any]:
        """Run a task here and now; ``watch`` is called as it goes on. Raises what it raises."""
        job = self._taken(task)
        job.progress.watch = lambda: watch(job.progress)
        self._run(job)
        if job.error is not None:
            raise job.error
        assert job.result is not None
        return job.result

    def of(self, job_id: str | None = None) -> Job:
        """The latest job, or raise UsageError where it is not that one."""
        if self.job is None or (job_id is not None and self.job.id != job_id):
            raise UsageError(f"there is no comparison {job_id or 'yet'}", code="not_found", hint="start one")
        return self.job

    def cancel(self, job_id: str) -> Job:
        job = self.of(job_id)
        job.cancelled = True
        return job

    def _taken(self, task: Task) -> Job:
        with self._lock:
            if self.job is not None and self.job.state == "running":
                raise UsageError("a comparison is running already", hint="wait for it, or cancel it")
            self.job = Job(task=task)
            return self.job

    # ── one job ──

    def _run(self, job: Job) -> None:
        session = self.service.database.session()
        try:
            job.progress.step = lambda seconds: self._pace(job, seconds)
            job.result = self._result(session, job)
            job.state = "done"
        except ReplicatorError as error:
            job.error = error
            job.state = "cancelled" if isinstance(error, Cancelled) else "failed"
            log.warning("verify_ended", state=job.state, error=str(error))
        except Exception as error:
            job.error, job.state = (
                ReplicatorError(f"verify failed: {error}", hint="the service's log has more"),
                "failed",
            )
            log.exception("verify_failed")
        finally:
            session.close()
            job.done.set()

    def _result(self, session: Session, job: Job) -> dict[str, Any]:
        task, verifier = job.task, self.verifier(session)
        if not task.repair:
            report = verifier.verify(task.request, job.progress)
            self._remember(session, report)
            return report.as_json()
        mended = self.repairer(session, verifier).repair(
            task.request, actor=task.actor, dry_run=task.dry_run, progress=job.progress
        )
        self._remember(session, mended.after or mended.before)
        return mended.as_json()

    def _pace(self, job: Job, seconds: float) -> None:
        if job.cancelled:
            raise Cancelled("the comparison was cancelled")
        if job.task.paced:
            self.service.stop.wait(min(seconds, PACE_SECONDS_MAX))
            if self.service.stop.is_set():
                raise Cancelled("the service stops")

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
        if report.request.tables or not report.request.whole:
            return
        before = read_last_verify(session)
        at = report.finished_at.replace(tzinfo=UTC).timestamp()
        success = before.get("success_at") if report.mismatches else at
        told = {"at": at, "mismatches": report.mismatches, "rows": report.rows, "success_at": success}
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
                due = time.time() + (interval if self._scheduled() else min(RETRY_SECONDS, interval))

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

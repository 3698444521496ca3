"""Long work that an operator asks the service for: verify, repair, replay, rebuild. Watched, and ended at its next step.

Guarantees: of what would disturb one another only one runs at a time; a job's end, and why, can be asked for by its id
until RECENT_MAX others have begun. Never holds up a stop for longer than one step.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import structlog
from attrs import define, field

from replicator.changelog import Pins
from replicator.database import Database, Session
from replicator.errors import ReplicatorError, UsageError
from replicator.verify import Progress

VERIFY, REPLAY, REBUILD, SNAPSHOT = "verify", "replay", "rebuild", "snapshot"
NOUNS = {VERIFY: "comparison", REPLAY: "replay", REBUILD: "rebuild", SNAPSHOT: "snapshot"}
BESIDE = {
    VERIFY: {REPLAY, SNAPSHOT},
    REPLAY: {VERIFY, SNAPSHOT},
    REBUILD: {SNAPSHOT},
    SNAPSHOT: {VERIFY, REPLAY, REBUILD},
}
"""What may run beside a kind of job. A table that is being replaced can be neither compared nor sent to."""
ONE_TRANSACTION = {SNAPSHOT}
"""What reads the log in one transaction, which sees all of it whatever is deleted meanwhile."""
RECENT_MAX = 32

log = structlog.get_logger(__name__)


class Cancelled(ReplicatorError):
    """Somebody ended the job, or the service stops."""


@define
class Job:
    """Work under way, and then its result."""

    kind: str
    id: str = field(factory=lambda: uuid.uuid4().hex[:12])
    progress: Progress = field(factory=Progress)
    state: str = "running"
    result: dict[str, Any] | None = None
    error: ReplicatorError | None = None
    cancelled: bool = False
    yields: bool = False
    """Whether it was begun by the schedule, and ends for what somebody asks for."""
    made_room: bool = False
    ended: threading.Event = field(factory=threading.Event)
    started_at: float = field(factory=time.time)

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
            "error": None if error is None else {"kind": error_kind(error), "message": error.message, "hint": error.hint},
        }  # fmt: skip


Work = Callable[[Session, Job], dict[str, Any]]
"""What a job does, with a session of its own; it raises what goes wrong."""


def error_kind(error: ReplicatorError) -> str:
    """The error's name as the HTTP interface spells it."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


@define
class Jobs:
    """The jobs of one service, whose loops need not be running."""

    database: Database
    stop: threading.Event
    pins: Pins = field(factory=Pins)
    """Those of the log: nothing of it is deleted while a job reads it."""
    latest: dict[str, Job] = field(factory=dict)
    recent: deque[Job] = field(factory=lambda: deque(maxlen=RECENT_MAX))
    """Those begun last, of all kinds: one on request is asked for though the schedule has begun another since."""
    _lock: threading.Lock = field(factory=threading.Lock)

    def start(self, kind: str, work: Work) -> Job:
        """Begin a job in a thread of its own. Raises UsageError while one runs that it would disturb."""
        job, before = self._taken(kind)
        threading.Thread(target=self._run, args=(job, work, before), name=f"{kind}-job", daemon=True).start()
        return job

    def run(
        self, kind: str, work: Work, watch: Callable[[Progress], None] = lambda _: None, *, yields: bool = False
    ) -> dict[str, Any]:
        """Do it here and now; ``watch`` is called as it goes on. Raises what it raises.

        With ``yields`` it is ended, as if cancelled, as soon as somebody asks for what it would be in the way of.
        """
        job, before = self._taken(kind, yields=yields)
        job.progress.watch = lambda: watch(job.progress)
        self._run(job, work, before)
        if job.error is not None:
            raise job.error
        assert job.result is not None
        return job.result

    def of(self, kind: str, job_id: str | None = None) -> Job:
        """The one of this id, or the latest of its kind. Raises UsageError where there is none."""
        known = (*self.recent.copy(), *self.latest.values())
        named = (job for job in known if (job.kind, job.id) == (kind, job_id))
        job = self.latest.get(kind) if job_id is None else next(named, None)
        if job is None:
            raise UsageError(f"there is no {NOUNS[kind]} {job_id or 'yet'}", code="not_found", hint="start one")
        return job

    def cancel(self, kind: str, job_id: str) -> Job:
        job = self.of(kind, job_id)
        job.cancelled = True
        return job

    def rest(self, job: Job, seconds: float) -> None:
        """Between two steps of a job: wait so long. Raises Cancelled when it is to end."""
        deadline = time.monotonic() + seconds
        while not (job.cancelled or self.stop.is_set()):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.stop.wait(min(left, 0.5))
        how = "made room for one that was asked for" if job.made_room else "was cancelled"
        raise Cancelled(f"the {NOUNS[job.kind]} {how}" if job.cancelled else "the service stops")

    def _taken(self, kind: str, *, yields: bool = False) -> tuple[Job, list[Job]]:
        """The new job, and those of the schedule that it has to see the end of."""
        with self._lock:
            running = [other for other in self.latest.values() if other.state == "running"]
            others = [other for other in running if other.kind not in BESIDE[kind]]
            for other in others:
                if yields or not other.yields:
                    raise UsageError(f"a {NOUNS[other.kind]} is running already", hint=_how_to_end(other), code="busy")
            for other in others:
                other.made_room = other.cancelled = True
            job = self.latest[kind] = Job(kind=kind, yields=yields)
            self.recent.append(job)
            return job, others

    def _run(self, job: Job, work: Work, before: Sequence[Job]) -> None:
        try:
            for other in before:
                other.ended.wait()
            self._run_alone(job, work)
        finally:
            job.ended.set()

    def _run_alone(self, job: Job, work: Work) -> None:
        with nullcontext() if job.kind in ONE_TRANSACTION else self.pins.hold(f"the {NOUNS[job.kind]}"):
            self._run_pinned(job, work)

    def _run_pinned(self, job: Job, work: Work) -> None:
        session = self.database.session()
        try:
            job.progress.step = lambda _: self.rest(job, 0)
            job.result = work(session, job)
            job.state = "done"
        except ReplicatorError as error:
            job.error, job.state = error, "cancelled" if isinstance(error, Cancelled) else "failed"
            log.warning("job_ended", job=job.kind, state=job.state, error=str(error))
        except Exception as error:
            message = f"the {NOUNS[job.kind]} failed: {error}"
            job.error, job.state = ReplicatorError(message, hint="the service's log has more"), "failed"
            log.exception("job_failed", job=job.kind)
        finally:
            session.close()


def _how_to_end(job: Job) -> str:
    return f"wait for it, or end it: Ctrl-C where it was begun, or POST /api/v1/{job.kind}/{job.id}/cancel"

"""Snapshots as the service and the commands take them: one at a time, on request or on a schedule, old ones pruned.

Guarantees: at most half of the time is spent on one, so that capture and delivery have the rest; one on request leaves
a row in ``operator_actions``; a schedule survives restarts, for the newest file tells when the last one was taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from attrs import define, evolve, frozen

from replicator.controls import record_action
from replicator.database import Session
from replicator.errors import ReplicatorError
from replicator.service_job import SNAPSHOT, Job, Jobs
from replicator.snapshot import Snapshot
from replicator.snapshot_files import SnapshotFile
from replicator.verify import Progress

if TYPE_CHECKING:
    from replicator.service import Service

POLL_SECONDS = 1.0
RETRY_SECONDS = 60.0

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class SnapshotTask:
    """What is wanted: the current rows, and so many of the newest changes. ``actor`` None: the schedule."""

    log_changes: int = 0
    actor: str | None = None


@define
class Snapshots:
    """Takes them for one service; ``service`` need not be running its loops."""

    service: Service
    jobs: Jobs

    def start(self, task: SnapshotTask) -> Job:
        """Take one in a thread of its own. Raises UsageError while another one is taken."""
        return self.jobs.start(SNAPSHOT, partial(self._result, task))

    def run(self, task: SnapshotTask, watch: Callable[[Progress], None] = lambda _: None) -> dict[str, Any]:
        """Take one here and now. Raises what it raises."""
        return self.jobs.run(SNAPSHOT, partial(self._result, task), watch)

    def listed(self) -> list[dict[str, Any]]:
        """Those that are kept, the newest first."""
        return [_file(file) for file in self.service.keeping.snapshots.directory.published()]

    def _result(self, task: SnapshotTask, session: Session, job: Job) -> dict[str, Any]:
        keeping, settings = self.service.keeping, self.service.settings.snapshots
        job.progress.what = "snapshot"
        maker = evolve(keeping.snapshots, rest=partial(self.jobs.rest, job))
        taken = maker.take(session, log_changes=task.log_changes)
        gone = maker.directory.prune(settings.keep)
        if task.actor is not None:
            effect = f"{taken.file.path.name} at offset {taken.head_offset}"
            record_action(session, task.actor, "snapshot", str(taken.file.path), effect)
        return {**_answer(taken), "removed": [path.name for path in gone]}

    # ── the schedule ──

    def run_scheduled(self) -> None:
        """One every ``[snapshots] interval_sec`` until the service stops; none where that is 0."""
        service, settings = self.service, self.service.settings.snapshots
        due = self._first_due(settings.interval_sec)
        while not service.stop.wait(POLL_SECONDS):
            if not settings.interval_sec or time.time() < due:
                continue
            try:
                self.run(SnapshotTask(log_changes=settings.log_changes))
                service.keeping.snapshot_error = None
                due = time.time() + settings.interval_sec
            except ReplicatorError as error:
                log.warning("snapshot_failed", error=str(error))
                service.keeping.snapshot_error = str(error)
                due = time.time() + min(RETRY_SECONDS, settings.interval_sec)

    def _first_due(self, interval: float) -> float:
        """An interval after the last one; at once where there is none."""
        newest = next(iter(self.service.keeping.snapshots.directory.published()), None)
        return newest.taken_at.timestamp() + interval if newest else 0.0


def _file(file: SnapshotFile) -> dict[str, Any]:
    age = (datetime.now(UTC) - file.taken_at).total_seconds()
    taken_at = f"{file.taken_at:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
    return {"path": str(file.path), "taken_at": taken_at, "age_seconds": round(max(0.0, age), 3), "bytes": file.bytes}


def _answer(taken: Snapshot) -> dict[str, Any]:
    return {
        **_file(taken.file),
        "head_offset": taken.head_offset,
        "log_first_offset": taken.log_first,
        "rows": taken.rows,
        "seconds": round(taken.seconds, 3),
    }

"""Replay as the service and the command run it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from replicator.deliver_work import BATCH_BYTES_MAX
from replicator.replay import Replayer
from replicator.replay_plan import Planner, ReplayRequest
from replicator.resend import Resender
from replicator.service_job import REPLAY, Job, Jobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from replicator.database import Session
    from replicator.service import Service
    from replicator.verify import Progress


@frozen(kw_only=True)
class ReplayTask:
    """What is to be sent again; ``request`` None: what an earlier replay has left."""

    request: ReplayRequest | None
    dry_run: bool = False
    actor: str = ""


@define
class Replaying:
    """Runs replays for one service, whose loops need not be running."""

    service: Service
    jobs: Jobs

    def start(self, task: ReplayTask) -> Job:
        """In a thread of its own. Raises UsageError while one runs already."""
        return self.jobs.start(REPLAY, partial(self._work, task))

    def run(self, task: ReplayTask, watch: Callable[[Progress], None] = lambda _: None) -> dict[str, Any]:
        """Here and now; raises what it raises."""
        return self.jobs.run(REPLAY, partial(self._work, task), watch)

    def _work(self, task: ReplayTask, session: Session, job: Job) -> dict[str, Any]:
        replayer = self._replayer(session, job)
        if task.request is None:
            return replayer.resume(actor=task.actor)
        plan = replayer.planner.plan(task.request)
        if task.dry_run:
            return {"dry_run": True, **plan.as_json()}
        job.progress.rows_expected = plan.rows
        done = replayer.replay(task.request, plan, actor=task.actor)
        return {"dry_run": False, **plan.as_json(), **done}

    def _replayer(self, session: Session, job: Job) -> Replayer:
        service, progress = self.service, job.progress
        settings, worker = service.settings, service.deliver.worker

        def rest(seconds: float) -> None:
            self.jobs.rest(job, seconds)

        def sent(table: str, rows: int) -> None:
            progress.what = table
            progress.compared(rows)

        return Replayer(
            session=session,
            planner=Planner(
                session=session,
                sink=service.sink,
                catalog=service.catalog,
                pipeline=settings.pipeline.name,
                failed_table=service.ledger.failed_table,
                batch_rows=settings.writer.sync.batch_size,
            ),
            resender=resender(service, session, rest),
            prepare=lambda lane, offsets, version: worker.prepare(lane, offsets, version, BATCH_BYTES_MAX),
            rest=rest,
            sent=sent,
        )


def resender(service: Service, session: Session, rest: Callable[[float], None]) -> Resender:
    """For one job, with the job's session."""
    return Resender(
        sink=service.sink,
        pipeline=service.settings.pipeline.name,
        timeline=lambda: service.changelog.timeline,
        next_send=lambda: service.ledger.next_send(session),
        ladder=service.deliver.settings.ladder(),
        rest=rest,
    )

"""``/api/v1/replay``: send a range again, see how far it is, end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from replicator.errors import UsageError
from replicator.replay_plan import ReplayRequest
from replicator.server_app import Actor, Body, Doors
from replicator.service_job import REPLAY
from replicator.service_replay import Replaying, ReplayTask

if TYPE_CHECKING:
    from replicator.running import RunningService


class ReplayBody(Body):
    """``first`` and ``last`` are offsets or instants, as text; ``resume`` goes on with an unfinished replay instead."""

    tables: list[str] = Field(default=[], max_length=1000)
    first: str | None = Field(default=None, min_length=1, max_length=100)
    last: str | None = Field(default=None, min_length=1, max_length=100)
    rate: float | None = Field(default=None, gt=0)
    resume: bool = False
    dry_run: bool = False

    def task(self, actor: str) -> ReplayTask:
        if self.resume:
            return ReplayTask(request=None, actor=actor)
        if self.first is None:
            raise UsageError("first is needed: an offset or an instant")
        request = ReplayRequest(first=self.first, last=self.last, tables=tuple(self.tables), rate=self.rate)
        return ReplayTask(request=request, dry_run=self.dry_run, actor=actor)


def make_router(running: RunningService, doors: Doors) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["replay"])
    reader, admin, jobs = [Depends(doors.read)], [Depends(doors.admin)], running.verification.jobs
    replaying = Replaying(service=running.service, jobs=jobs)

    @router.post("/replay", dependencies=admin)
    def replay(body: ReplayBody, who: Actor) -> dict[str, Any]:
        """Begin to send a range again. Answers at once: ask ``/replay/{id}`` how far it is."""
        return replaying.start(body.task(who)).as_json()

    @router.get("/replay", dependencies=reader)
    def latest() -> dict[str, Any]:
        """The latest replay since the service started."""
        return jobs.of(REPLAY).as_json()

    @router.get("/replay/{job_id}", dependencies=reader)
    def one(job_id: str) -> dict[str, Any]:
        """How far it is; ``result`` is there when ``state`` is done."""
        return jobs.of(REPLAY, job_id).as_json()

    @router.post("/replay/{job_id}/cancel", dependencies=admin)
    def cancel(job_id: str) -> dict[str, Any]:
        """End it at its next step; it can be resumed."""
        return jobs.cancel(REPLAY, job_id).as_json()

    return router

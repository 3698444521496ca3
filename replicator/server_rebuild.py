"""``/api/v1/rebuild``: make a table in ClickHouse anew, see how far it is, end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from replicator.server_app import Actor, Body, Doors
from replicator.service_job import REBUILD
from replicator.service_rebuild import Rebuilding, RebuildTask

if TYPE_CHECKING:
    from replicator.running import RunningService


class RebuildBody(Body):
    """The table is taken as the configuration on disk declares it now."""

    table: str = Field(min_length=1, max_length=200)
    dry_run: bool = False


def make_router(running: RunningService, doors: Doors) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["rebuild"])
    reader, admin, jobs = [Depends(doors.read)], [Depends(doors.admin)], running.verification.jobs
    rebuilding = Rebuilding(service=running.service, jobs=jobs)

    @router.post("/rebuild", dependencies=admin)
    def rebuild(body: RebuildBody, who: Actor) -> dict[str, Any]:
        """Begin to make a table anew. Answers at once: ask ``/rebuild/{id}`` how far it is."""
        task = RebuildTask(table=body.table, settings=running.reread(), dry_run=body.dry_run, actor=who)
        return rebuilding.start(task).as_json()

    @router.get("/rebuild", dependencies=reader)
    def latest() -> dict[str, Any]:
        """The latest rebuild since the service started."""
        return jobs.of(REBUILD).as_json()

    @router.get("/rebuild/{job_id}", dependencies=reader)
    def one(job_id: str) -> dict[str, Any]:
        """How far it is; ``result`` is there when ``state`` is done."""
        return jobs.of(REBUILD, job_id).as_json()

    @router.post("/rebuild/{job_id}/cancel", dependencies=admin)
    def cancel(job_id: str) -> dict[str, Any]:
        """End it at its next step, unless it has come to the exchange; the old table stays."""
        return jobs.cancel(REBUILD, job_id).as_json()

    return router

"""``/api/v1/snapshot``: take one, see how far it is, end it; and those that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from replicator.server_app import Actor, Body, Doors
from replicator.service_job import SNAPSHOT
from replicator.service_snapshot import SnapshotTask

if TYPE_CHECKING:
    from replicator.running import RunningService


class SnapshotBody(Body):
    """``log_changes``: so many of the newest changes beside the current rows; null: as configured."""

    log_changes: int | None = Field(default=None, ge=0, lt=2**48)


def make_router(running: RunningService, doors: Doors) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["snapshot"])
    reader, admin, snapshots = [Depends(doors.read)], [Depends(doors.admin)], running.snapshots

    @router.post("/snapshot", dependencies=admin)
    def snapshot(body: SnapshotBody, who: Actor) -> dict[str, Any]:
        """Begin to take one. Answers at once: ask ``/snapshot/{id}`` how far it is."""
        configured = running.settings.snapshots.log_changes
        changes = configured if body.log_changes is None else body.log_changes
        return snapshots.start(SnapshotTask(log_changes=changes, actor=who)).as_json()

    @router.get("/snapshots", dependencies=reader)
    def kept() -> list[dict[str, Any]]:
        """Those that are kept, the newest first."""
        return snapshots.listed()

    @router.get("/snapshot/{job_id}", dependencies=reader)
    def one(job_id: str) -> dict[str, Any]:
        """How far it is; ``result`` is there when ``state`` is done."""
        return snapshots.jobs.of(SNAPSHOT, job_id).as_json()

    @router.post("/snapshot/{job_id}/cancel", dependencies=admin)
    def cancel(job_id: str) -> dict[str, Any]:
        """End it at its next step."""
        return snapshots.jobs.cancel(SNAPSHOT, job_id).as_json()

    return router

"""``/api/v1/verify``: start a comparison or a repair, see how far it is, end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from replicator.server_app import Actor, Body, Doors
from replicator.service_job import VERIFY
from replicator.service_verify import Task
from replicator.verify_report import VerifyRequest

if TYPE_CHECKING:
    from replicator.running import RunningService


class VerifyBody(Body):
    """``tables`` empty: all. ``first_offset`` and ``last_offset`` bound what is compared; then T is not."""

    tables: list[str] = Field(default=[], max_length=1000)
    first_offset: int = Field(default=1, ge=1)
    last_offset: int | None = Field(default=None, ge=1)
    quick: bool = False
    repair: bool = False
    dry_run: bool = False

    def task(self, actor: str) -> Task:
        request = VerifyRequest(
            tables=tuple(self.tables), first=self.first_offset, last=self.last_offset, reread_log=not self.quick
        )
        return Task(request=request, repair=self.repair or self.dry_run, dry_run=self.dry_run, actor=actor)


def make_router(running: RunningService, doors: Doors) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["verify"])
    reader, admin, verification = [Depends(doors.read)], [Depends(doors.admin)], running.verification

    @router.post("/verify", dependencies=admin)
    def verify(body: VerifyBody, who: Actor) -> dict[str, Any]:
        """Begin a comparison, or a repair. Answers at once: ask ``/verify/{id}`` how far it is."""
        return verification.start(body.task(who)).as_json()

    @router.get("/verify", dependencies=reader)
    def latest() -> dict[str, Any]:
        """The latest comparison since the service started, scheduled ones too."""
        return verification.jobs.of(VERIFY).as_json()

    @router.get("/verify/{job_id}", dependencies=reader)
    def one(job_id: str) -> dict[str, Any]:
        """How far it is; ``result`` is there when ``state`` is done."""
        return verification.jobs.of(VERIFY, job_id).as_json()

    @router.post("/verify/{job_id}/cancel", dependencies=admin)
    def cancel(job_id: str) -> dict[str, Any]:
        """End it at its next step."""
        return verification.jobs.cancel(VERIFY, job_id).as_json()

    return router

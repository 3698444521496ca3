"""``/api/v1/doctor``: what only the running service can tell for a support bundle, without a secret or a row's value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends

from replicator.doctor import known_names, service_part
from replicator.server_app import Doors

if TYPE_CHECKING:
    from replicator.running import RunningService


def make_router(running: RunningService, doors: Doors) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["doctor"])

    @router.get("/doctor", dependencies=[Depends(doors.read)])
    def doctor() -> dict[str, Any]:
        """Schema of the DuckDB file, recent records without rows, and where each thread is."""
        return service_part(running.service.database, running.operations, known_names(running.settings))

    return router

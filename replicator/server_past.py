"""``/api/v1/state/{table}`` and ``/api/v1/trace``: a table as it was, and what happened to one change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query

from replicator.server_app import Doors
from replicator.service_past import ROWS_MAX, state_answer, trace_answer

if TYPE_CHECKING:
    from replicator.running import RunningService

Text = Annotated[str | None, Query(max_length=10_000)]


def make_router(running: RunningService, doors: Doors) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["past"])
    reader, service = [Depends(doors.read)], running.service

    @router.get("/state/{table}", dependencies=reader)
    def state(
        table: str, as_of: Text = None, key: Text = None, limit: Annotated[int, Query(ge=1, le=ROWS_MAX)] = 100
    ) -> dict[str, Any]:
        """The table's rows as of an offset or an instant; without one, as they are."""
        return state_answer(service, table, as_of=as_of, key=key, limit=limit)

    @router.get("/trace", dependencies=reader)
    def trace(text: Annotated[str, Query(min_length=1, max_length=10_000)], table: Text = None) -> dict[str, Any]:
        """What happened to the changes that an offset, an event id, an entry id or a key names."""
        return trace_answer(service, text, table=table)

    return router

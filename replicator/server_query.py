"""``POST /api/v1/query``: a reader's query, answered as it is computed.

Guarantees: an answer that ends properly is whole; one that fails midway is cut off, so that no reader takes it for
whole; a query whose reader has left is stopped. Holds no logic of its own: see `query`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from replicator.query import OPEN_MAX, Ask, Queries, QueryFailed, RunningQuery
from replicator.query_question import ROWS_MAX, SECONDS_DEFAULT, SECONDS_MAX, EntryNotCaptured, Format
from replicator.server_app import Body, Doors
from replicator.server_shapes import ErrorAnswer

if TYPE_CHECKING:
    from replicator.running import RunningService

POLL_SECONDS = 0.01
GONE_STATUS = 499
T = TypeVar("T")

log = structlog.get_logger(__name__)

Value = str | int | float | bool | None


class EntryName(Body):
    """What XADD returned, and the stream it went to."""

    stream: str = Field(min_length=1, max_length=512)
    entry_id: str = Field(min_length=1, max_length=64)


class QueryRequest(Body):
    """One SELECT. Decimals and integers beyond 2^53 may be given as strings."""

    sql: str = Field(min_length=1, max_length=1_000_000)
    parameters: list[Value] | dict[str, Value] | None = Field(
        default=None, description="Values for ? or $1, or by name for $name."
    )
    timeout_seconds: float = Field(default=SECONDS_DEFAULT, gt=0, le=SECONDS_MAX)
    max_rows: int = Field(default=ROWS_MAX, ge=0, le=ROWS_MAX, description="More rows than this are an error.")
    min_entry_id: EntryName | None = Field(
        default=None, description="Wait until this entry is in the log: read what you wrote."
    )
    wait_seconds: float = Field(default=10.0, ge=0, le=SECONDS_MAX, description="How long to wait for min_entry_id.")


class PieceResponse(Response):
    """Sends a query's pieces as they come; when the query fails, the connection is closed before the answer's end."""

    def __init__(self, query: RunningQuery, pool: ThreadPoolExecutor) -> None:
        super().__init__(media_type=query.ask.form.media_type)
        del self.headers["content-length"]
        self.headers["x-replicator-head-offset"] = str(query.head_offset)
        self._query, self._pool = query, pool

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        pieces = self._query.pieces()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while (piece := await _or_stopped(self._pool, lambda: next(pieces, None), gone, self._query)) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except QueryFailed as error:
            log.info("query_cut_off", code=error.code)
        finally:
            gone.cancel()
            self._query.cancel(QueryFailed("the reader left", code="left"))
            self._pool.submit(_finish, pieces)


def _finish(pieces: Iterator[bytes]) -> None:
    """Close what is still open. Another thread may be inside it: then that one does."""
    try:
        pieces.close()  # type: ignore[attr-defined]
    except ValueError:
        log.debug("query_closes_itself")


async def _gone(receive: Receive) -> None:
    """Returns when the reader has left. The body was read already: what comes next is its leaving."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _or_stopped(
    pool: ThreadPoolExecutor, work: Callable[[], T], gone: asyncio.Future[None], query: RunningQuery
) -> T:
    """What ``work`` gives; when the reader leaves meanwhile, the query is cancelled, and ``work`` raises."""
    working = asyncio.get_running_loop().run_in_executor(pool, work)
    await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        query.cancel(QueryFailed("the reader left", code="left"))
    return await working


def make_router(running: RunningService, doors: Doors) -> APIRouter:
    service = running.service
    directory = service.settings.writer.performance.temp_directory or service.database.options.path.parent
    queries = Queries(database=service.database, directory=directory / "queries", progress=service.progress)
    pool = ThreadPoolExecutor(OPEN_MAX, thread_name_prefix="query")
    threading.Thread(target=_close_at_end, args=[service.stop, queries], name="query-end", daemon=True).start()
    router = APIRouter(prefix="/api/v1", tags=["query"])

    @router.post("/query", dependencies=[Depends(doors.read)], responses=DESCRIBED, response_class=Response)
    async def query(
        body: QueryRequest, request: Request, accept: Annotated[str, Header()] = "application/json"
    ) -> Response:
        """One SELECT over the tables and views of the log, at one moment; see the types for what may be asked."""
        form = wanted_format(accept)
        await _captured(queries, body)
        asked = Ask(
            sql=body.sql,
            parameters=body.parameters,
            form=form,
            seconds=body.timeout_seconds,
            rows_max=body.max_rows,
        )
        opened = queries.open(asked)
        gone = asyncio.ensure_future(_gone(request.receive))
        try:
            await _or_stopped(pool, opened.start, gone, opened)
        except QueryFailed as error:
            if error.code == "left":
                return Response(status_code=GONE_STATUS)
            raise
        except asyncio.CancelledError:
            opened.cancel(QueryFailed("the service stops", code="stop"))
            pool.submit(opened.close)
            raise
        finally:
            gone.cancel()
        return PieceResponse(opened, pool)

    return router


DESCRIBED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The rows, in the format that Accept names.",
        "content": {form.media_type.partition(";")[0]: {} for form in Format},
    },
    406: {"model": ErrorAnswer, "description": "Rows are not to be had in the format that Accept names."},
}


def wanted_format(accept: str) -> Format:
    """The first format that the Accept header names and we have. Raises HTTPException 406."""
    for part in accept.lower().split(","):
        kind = part.partition(";")[0].strip()
        if kind in ("*/*", "application/*", ""):
            return Format.JSON
        for form in Format:
            if kind == form.media_type.partition(";")[0]:
                return form
    have = ", ".join(form.media_type.partition(";")[0] for form in Format)
    raise HTTPException(406, f"a query is answered as {have}")


async def _captured(queries: Queries, body: QueryRequest) -> None:
    """Wait until the entry that the reader names is in the log. Raises EntryNotCaptured."""
    entry = body.min_entry_id
    if entry is None:
        return
    deadline = time.monotonic() + body.wait_seconds
    while not queries.captured(entry.stream, entry.entry_id):
        if time.monotonic() > deadline:
            raise EntryNotCaptured(
                f"entry {entry.entry_id} of stream {entry.stream} is not in the log after {body.wait_seconds:g} s",
                hint="`replicator status` says how far capture is; ask again, or raise wait_seconds",
            )
        await asyncio.sleep(POLL_SECONDS)


def _close_at_end(stop: threading.Event, queries: Queries) -> None:
    stop.wait()
    queries.close()

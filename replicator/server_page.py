"""The page: three kinds of files for anyone who may call at all, and what they show for whoever has the read token.

Guarantees: the files hold nothing of this pipeline and come from a fixed list; the page may load nothing from
elsewhere, run nothing written into it, and be shown in nobody's frame; the token travels in the Authorization header
alone, never in an address or a cookie. The page only reads: there is nothing to forge. What is sent to those who look
ends with their token, with the service, or when they no longer take it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from replicator.page_feed import VIEWERS_MAX, PageFeed
from replicator.server_app import Doors

if TYPE_CHECKING:
    from replicator.running import RunningService

BEAT_SECONDS = 5.0
SEND_SECONDS = 20.0
"""Whoever takes nothing for so long is let go."""
LOOK_SECONDS = 0.1
TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "html": "text/html"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "x-frame-options": "DENY",
}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Every file of the page by its name, and its type."""
    root = files("replicator") / "page"
    found = [*root.iterdir(), *(root / "vendor").iterdir()]
    named = {item.name: item for item in found if item.is_file() and item.name.rpartition(".")[2] in TYPES}
    return {name: (item.read_bytes(), TYPES[name.rpartition(".")[2]]) for name, item in named.items()}


class LiveResponse(Response):
    """The last hour, then each frame as it is made, and a beat where there is none for a while."""

    media_type = "text/event-stream"

    def __init__(self, feed: PageFeed, may_look: Callable[[], bool]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"
        self._feed, self._may_look = feed, may_look

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._feed.viewer() as admitted:
            if not admitted:
                raise HTTPException(503, f"{VIEWERS_MAX} pages are open already", headers={"Retry-After": "10"})
            leaving = asyncio.ensure_future(_left(receive))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for piece in self._pieces(leaving):
                    message = {"type": "http.response.body", "body": piece, "more_body": True}
                    await asyncio.wait_for(send(message), SEND_SECONDS)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            except TimeoutError:
                scope["state"]["abort"]()
            finally:
                leaving.cancel()

    async def _pieces(self, leaving: asyncio.Future[None]) -> AsyncIterator[bytes]:
        loop, stop = asyncio.get_running_loop(), self._feed.running.service.stop
        yield event("hour", self._feed.hour())
        shown, sent_at = None, loop.time()
        while not leaving.done():
            if stop.is_set() or not self._may_look():
                yield event("end", json.dumps("stopping" if stop.is_set() else "token").encode())
                return
            frame = self._feed.frame
            if frame is not None and frame is not shown:
                shown, sent_at = frame, loop.time()
                yield event("frame", frame)
            elif loop.time() - sent_at >= BEAT_SECONDS:
                sent_at = loop.time()
                yield event("beat", b"null")
            await asyncio.sleep(LOOK_SECONDS)


def event(name: str, body: bytes) -> bytes:
    """One server-sent event; ``body`` is JSON on one line."""
    return b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"


async def _left(receive: Receive) -> None:
    """Returns when the reader has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def make_router(running: RunningService, doors: Doors) -> APIRouter:
    router = APIRouter(tags=["page"])
    held = page_files()

    def answer(name: str) -> Response:
        body, kind = held[name]
        return Response(body, media_type=kind, headers=PAGE_HEADERS)

    @router.get("/", include_in_schema=False)
    def page() -> Response:
        return answer("index.html")

    @router.get("/page/{name}", include_in_schema=False)
    def part(name: str) -> Response:
        if name not in held:
            raise HTTPException(404, "the page has no such part")
        return answer(name)

    @router.get(
        "/api/v1/live",
        dependencies=[Depends(doors.read)],
        responses={200: LIVE},
        response_class=Response,
    )
    async def live(request: Request) -> Response:
        """What the page shows, as server-sent events; `status` is the documented way to ask how the pipeline stands."""
        token = request.headers["authorization"].partition(" ")[2].strip()
        return LiveResponse(running.feed, lambda: running.tokens.role(token) is not None)

    return router


LIVE: dict[str, Any] = {
    "description": "`hour` once, then a `frame` every few seconds, a `beat` between, `end` when it will not go on.",
    "content": {"text/event-stream": {}},
}

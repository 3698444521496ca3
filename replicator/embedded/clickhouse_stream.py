"""A SELECT's output sent while it still runs.

Guarantees that the status tells how the query began, and that an error midway reaches the client as ClickHouse sends
it: a tagged block at the end of a body that is then cut off. It must never end such a body as if it were whole.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from replicator.embedded.clickhouse_engine import EngineError, Query
from replicator.embedded.clickhouse_request import content_type

_JOINING_FORMATS = frozenset({"Native", "RowBinary", "JSONEachRow", "TabSeparated", "TSV", "CSV"})
_CLOSING_ROWS = re.compile(rb"\b(?:totals|rollup|cube|extremes|outfile|insert)\b", re.IGNORECASE)


def joins_into_a_whole(query: Query, format_name: str) -> bool:
    """Whether the engine's pieces of this output make the whole: it drops totals and repeats headers (chdb 4.4)."""
    plain = format_name in _JOINING_FORMATS and query.first_word in ("SELECT", "WITH")
    return plain and "extremes" not in query.settings and not _CLOSING_ROWS.search(query.statement)


class StreamedAnswer(Response):
    """Sends ``pieces``, which come from a thread; closes them when the client goes away."""

    def __init__(
        self,
        request: Request,
        pieces: Generator[bytes, None, None],
        threads: anyio.CapacityLimiter,
        headers: dict[str, str],
    ) -> None:
        super().__init__(headers=headers, media_type=content_type(headers["X-ClickHouse-Format"]))
        del self.headers["Content-Length"]
        self._request = request
        self._pieces = pieces
        self._threads = threads
        self._first: bytes | None = None

    async def begin(self) -> None:
        """Wait for the first piece; raises EngineError when the query cannot even begin."""
        self._first = await self._next()

    async def _next(self) -> bytes | None:
        return await anyio.to_thread.run_sync(next, self._pieces, None, limiter=self._threads)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the answer."""
        tag = secrets.token_hex(8)
        self.headers["X-ClickHouse-Exception-Tag"] = tag
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        piece = self._first
        try:
            while piece is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if await self._request.is_disconnected():
                    break
                piece = await self._next()
        except EngineError as error:
            await send({"type": "http.response.body", "body": _exception_block(error, tag), "more_body": True})
            return  # without an end: the server cuts the connection
        finally:
            self._pieces.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _exception_block(error: EngineError, tag: str) -> bytes:
    """ClickHouse's own form of an error in a body under way. Source: ClickHouse 25.11, WriteBufferFromHTTPServerResponse."""
    text = (error.text + "\n").encode()
    return b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (tag.encode(), text, len(text), tag.encode())

"""What stands before every request: the host it names, the page it comes from, the size of its body, idle connections.

Guarantees: a web page on another origin cannot reach the service through a browser, nor by rebinding a name to this
address; a body is never taken beyond its limit; a connection that says nothing is closed, and there are never more
than a fixed number of them. Never looks at tokens: see `server_app`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from attrs import define, frozen
from fastapi import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from replicator.config.checks import is_loopback

BODY_BYTES_MAX = 1 << 20
CONNECTIONS_MAX = 256
REQUEST_SECONDS = 10.0
"""So long a connection may take to say what it wants, from its beginning or from the last answer on."""
BODY_SECONDS = 30.0
"""So long the whole body may take."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


def error_body(kind: str, message: str, hint: str = "") -> dict[str, Any]:
    """How every error of the interface looks."""
    return {"error": {"kind": kind, "message": message, "hint": hint or None}}


@frozen(kw_only=True)
class Refusal:
    status: int
    kind: str
    message: str
    hint: str = ""


@define
class Guard:
    """ASGI middleware around the whole application. ``host`` is the address the service listens on."""

    app: App
    host: str
    body_bytes_max: int = BODY_BYTES_MAX

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers, opens_page=scope["path"] == "/" and scope["method"] == "GET")
        if refusal is not None:
            return await _answer(send, refusal)

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in HEADERS if h[0] not in present)]
            await send(message)

        await self.app(scope, _limited(receive, self.body_bytes_max), send_with_headers)
        return None

    def _refusal(self, headers: dict[bytes, str], *, opens_page: bool) -> Refusal | None:
        host = headers.get(b"host", "")
        if is_loopback(self.host) and not _names_loopback(host):
            return Refusal(
                status=421,
                kind="wrong_host",
                message=f"this service is not {host[:200]!r}",
                hint="call it by 127.0.0.1",
            )
        origin = headers.get(b"origin")
        # A link to the page may stand anywhere: what it opens knows nothing before somebody has signed in.
        follows_link = opens_page and headers.get(b"sec-fetch-mode") == "navigate"
        cross_site = headers.get(b"sec-fetch-site", "none") not in ("none", "same-origin") and not follows_link
        if cross_site or (origin is not None and urlsplit_netloc(origin) != host):
            return Refusal(status=403, kind="cross_origin", message="calls from other origins are refused")
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > self.body_bytes_max:
            return Refusal(status=413, kind="too_large", message=_too_large(self.body_bytes_max))
        return None


def _too_large(bytes_max: int) -> str:
    return f"a body has at most {bytes_max} bytes"


def urlsplit_netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _names_loopback(host: str) -> bool:
    """Whether a Host header names this machine as such."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name)


def _limited(receive: Receive, bytes_max: int) -> Receive:
    taken = 0
    whole = False
    until = asyncio.get_running_loop().time() + BODY_SECONDS

    async def limited() -> MutableMapping[str, Any]:
        nonlocal taken, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            text = f"the body did not come within {BODY_SECONDS:.0f} s"
            raise HTTPException(408, text, headers={"Connection": "close"}) from None
        taken += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if taken > bytes_max:
            raise HTTPException(413, _too_large(bytes_max), headers={"Connection": "close"})
        return message

    return limited


async def _answer(send: Send, refusal: Refusal) -> None:
    body = json.dumps(error_body(refusal.kind, refusal.message, refusal.hint)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close"), *HEADERS]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol with a bound on connections, and on how long one may owe a request.

    Beyond the bound the connection that has owed its request longest makes room, so that a crowd locks nobody out,
    whether it is silent, has been answered before, or sends byte by byte. A request finds in its scope's state what
    cuts its connection: closing would wait for a reader that does not read.
    """

    owes_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        self._await_request()
        if len(self.connections) > CONNECTIONS_MAX:
            owing = [c for c in self.connections if isinstance(c, GuardedProtocol) and c.owes]
            min(owing, key=lambda c: c.owes_since).transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    @property
    def owes(self) -> bool:
        """Open, and without a whole request to be answered."""
        between = self.cycle is None or self.cycle.response_complete or self.cycle.more_body
        return between and not self.transport.is_closing()

    def _await_request(self) -> None:
        self.owes_since = self.loop.time()
        self.loop.call_later(REQUEST_SECONDS, self._close_if_owing, self.owes_since)

    def _close_if_owing(self, since: float) -> None:
        begun = self.cycle is not None and not self.cycle.response_complete
        if self.owes_since == since and not begun:
            self.transport.abort()

"""Slow clients, against a real server on loopback: who says nothing, who drips, who never ends; and a crowd of each."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from replicator_process import until

from replicator import server_guard
from replicator.server_guard import CONNECTIONS_MAX, Guard, GuardedProtocol

HELLO = b"GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
BODY = b"POST /body HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{"


def application() -> FastAPI:
    app = FastAPI()

    @app.get("/hello")
    def hello() -> str:
        return "hello"

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    return app


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        config = uvicorn.Config(
            Guard(application(), "127.0.0.1"),  # type: ignore[arg-type]
            http=GuardedProtocol, ws="none", lifespan="off", log_config=None, timeout_keep_alive=60, timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()
        server.should_exit = True
        thread.join()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_guard, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(server_guard, "BODY_SECONDS", 0.3)


def said(address: tuple[str, int], *pieces: bytes) -> socket.socket:
    link = socket.create_connection(address, timeout=30)
    for piece in pieces:
        link.sendall(piece)
    return link


def answered(link: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received or b"hello" not in received:
        piece = link.recv(4096)
        assert piece, "it hung up"
        received += piece
    return received


def hangs_up(link: socket.socket) -> bytes:
    """What comes before the other side lets go."""
    received = b""
    try:
        while piece := link.recv(4096):
            received += piece
    except ConnectionResetError:
        pass
    finally:
        link.close()
    return received


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("first", [b"", b"G", b"GET /hello HTTP/1.1\r\nHost: 127.0"], ids=["silent", "letter", "half"])
def test_who_does_not_ask_is_let_go(address: tuple[str, int], first: bytes) -> None:
    assert hangs_up(said(address, first)) == b""


@pytest.mark.usefixtures("hasty")
def test_who_drips_is_let_go_however_often_a_drop_comes(address: tuple[str, int]) -> None:
    link = said(address, HELLO)
    answered(link)
    link.settimeout(0.02)

    def gone() -> bool:
        try:
            link.sendall(b"G")
            return link.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    until(gone, "the connection is cut, though it was good once", 30)
    link.close()


@pytest.mark.usefixtures("hasty")
def test_a_body_that_does_not_end_is_refused(address: tuple[str, int]) -> None:
    assert hangs_up(said(address, BODY)).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("kind", ["silent", "answered-before", "half-asked", "body-unended"])
def test_a_crowd_locks_nobody_out(address: tuple[str, int], kind: str) -> None:
    """The crowd's own time has not run out: they are let go because there are too many."""
    crowd = []
    try:
        for _ in range(CONNECTIONS_MAX + 20):
            link = said(address)
            crowd.append(link)
            if kind == "answered-before":
                link.sendall(HELLO)
                answered(link)
                link.sendall(b"GET /hel")
            else:
                link.sendall({"silent": b"", "half-asked": b"GET /hel", "body-unended": BODY}[kind])
        with said(address, HELLO) as link:
            assert b"200 OK" in answered(link)
    finally:
        for link in crowd:
            link.close()


def test_a_request_finds_what_cuts_its_connection() -> None:
    found: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.update(scope["state"])
        scope["state"]["abort"]()

    async def ask() -> bytes:
        config = uvicorn.Config(app, http=GuardedProtocol, ws="none", lifespan="off", log_config=None)
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: GuardedProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(HELLO)
        try:
            return await asyncio.wait_for(reader.read(), 30)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()
            server.close()

    assert asyncio.run(ask()) == b""
    assert "abort" in found

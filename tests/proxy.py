"""Proxies that put faults between the service and its engines, for tests only.

`HttpProxy` stands before ClickHouse's HTTP interface and knows requests, so that a fault can be chosen by statement
and placed before, during or after its execution. `TcpProxy` stands before Redis and knows bytes only.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote_plus, urlsplit

from attrs import define, field, frozen

LOOPBACK = "127.0.0.1"
HOP_HEADERS = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}


class Break(StrEnum):
    """How a request is spoiled."""

    RESET_BEFORE = "reset_before"
    """The connection is reset and the request never reaches the server."""
    RESET_DURING = "reset_during"
    """The server has the request, the client gets a reset at once."""
    RESET_AFTER = "reset_after"
    """The server has done it, the client gets a reset in place of the answer."""
    TRUNCATE = "truncate"
    """The server has done it, half the answer's announced length comes and then nothing."""
    HANG = "hang"
    """Nothing happens until `HttpProxy.release`; then the request goes its way."""
    GARBAGE = "garbage"
    """Something that is no ClickHouse answers 200 with a page."""


@frozen
class Status:
    """An answer of a load balancer in the server's place."""

    code: int


@frozen
class ErrorCode:
    """ClickHouse refuses with a code of its own, without having done anything."""

    code: int
    message: str = "made for a test"


@frozen
class Delay:
    seconds: float


Fault = Break | Status | ErrorCode | Delay | None


@frozen(kw_only=True)
class Request:
    """What a rule may look at."""

    path: str
    body: bytes

    @property
    def statement(self) -> str:
        return unquote_plus(self.path) + " " + self.body[:2000].decode("latin-1")

    @property
    def inserts_into(self) -> str:
        """The table an INSERT of data goes to; empty for anything else."""
        found = re.search(r"(?i)insert\s+into\s+`?([\w.]+)`?", self.statement)
        return found[1] if found else ""


Rule = Callable[[Request], Fault]


def nothing(_: Request) -> Fault:
    return None


@define
class HttpProxy:
    """Before ``endpoint``; ``rule`` is asked at each request. ``seen`` counts requests that inserts made, by table."""

    endpoint: str
    rule: Rule = nothing
    seen: dict[str, int] = field(factory=dict)
    held: int = 0
    """Requests that hang, or went their way late and are not answered yet."""
    _released: threading.Event = field(factory=threading.Event)
    _server: ThreadingHTTPServer | None = None
    _port: int = 0
    _lock: threading.Lock = field(factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.refuse()

    def listen(self) -> None:
        """Accept connections, on the same port as before."""
        if self._server is None:
            proxy = self
            handler = type("Handler", (_Handler,), {"proxy": proxy})
            self._server = _HttpServer((LOOPBACK, self._port), handler)
            self._port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def refuse(self) -> None:
        """Refuse connections, and drop those there are."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()
            server.drop_connections()

    def release(self) -> None:
        """Let everything that hangs go its way."""
        self._released.set()
        self._released = threading.Event()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Hang until released; what is done inside belongs to the request that hung."""
        released = self._released
        with self._lock:
            self.held += 1
        try:
            released.wait(60)
            yield
        finally:
            with self._lock:
                self.held -= 1

    def count(self, table: str) -> None:
        with self._lock:
            self.seen[table] = self.seen.get(table, 0) + 1


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        for each in list(self._open):
            reset(each)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: HttpProxy

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def log_message(self, *_: object) -> None: ...

    def _handle(self) -> None:
        request = Request(path=self.path, body=self._body())
        if request.inserts_into:
            self.proxy.count(request.inserts_into)
        fault = self.proxy.rule(request)
        if isinstance(fault, Delay):
            threading.Event().wait(fault.seconds)
        if fault is Break.HANG:
            with self.proxy.holding():
                return self._pass_on(request, fault)
        if fault is Break.RESET_BEFORE:
            return self._reset()
        if fault is Break.RESET_DURING:
            threading.Thread(target=self._forwarded, args=(request,), daemon=True).start()
            return self._reset()
        if isinstance(fault, Status):
            return self._answer(fault.code, {}, b"no server is available")
        if isinstance(fault, ErrorCode):
            text = f"Code: {fault.code}. DB::Exception: {fault.message}. (MADE_UP)\n".encode()
            return self._answer(500, {"X-ClickHouse-Exception-Code": str(fault.code)}, text)
        if fault is Break.GARBAGE:
            return self._answer(200, {"Content-Type": "text/html"}, b"<html>It works!</html>")
        return self._pass_on(request, fault)

    def _pass_on(self, request: Request, fault: Fault) -> None:
        try:
            status, headers, body = self._forwarded(request)
        except (OSError, http.client.HTTPException):
            return self._reset()
        if fault is Break.RESET_AFTER:
            return self._reset()
        if fault is Break.TRUNCATE:
            body = body or b"x" * 64
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            return self._reset()
        return self._answer(status, headers, body)

    def _forwarded(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        target = urlsplit(self.proxy.endpoint)
        connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_HEADERS | {"host"}}
            connection.request(self.command, request.path, body=request.body or None, headers=headers)
            answer = connection.getresponse()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in HOP_HEADERS}
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        reset(self.connection)


def reset(connection: socket.socket) -> None:
    """End a connection so that the other end gets ECONNRESET, not an orderly end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)  # wakes whoever reads; the reset itself goes out on close
    with contextlib.suppress(OSError):
        connection.close()


@define
class TcpProxy:
    """Before ``host:port``. ``cut_after`` resets each connection once so many bytes of answers have passed."""

    host: str
    port: int
    cut_after: int | None = None
    silent: bool = False
    """Accept and pass nothing on: a server that hangs, or a network that swallows."""
    cuts: int = 0
    """Connections that were cut so."""
    _listener: socket.socket | None = None
    _own_port: int = 0
    _pairs: list[tuple[socket.socket, socket.socket]] = field(factory=list)

    @property
    def address(self) -> tuple[str, int]:
        return LOOPBACK, self._own_port

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()

    def listen(self) -> None:
        """Accept connections, on the same port as before."""
        self._listener = socket.create_server((LOOPBACK, self._own_port), reuse_port=False)
        self._own_port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Refuse connections, and reset those there are."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.reset_all()

    def reset_all(self) -> None:
        pairs, self._pairs = self._pairs, []
        for client, server in pairs:
            reset(client)
            reset(server)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((self.host, self.port), timeout=5)
            except OSError:
                reset(client)
                continue
            server.settimeout(None)
            self._pairs.append((client, server))
            for source, target, answers in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, target, answers), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                while self.silent:
                    threading.Event().wait(0.02)
                if answers and self.cut_after is not None and passed + len(piece) > self.cut_after:
                    self.cuts += 1
                    target.sendall(piece[: max(0, self.cut_after - passed)])
                    break
                target.sendall(piece)
                passed += len(piece)
        reset(source)
        reset(target)

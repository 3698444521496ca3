"""ClickHouse's HTTP interface in front of chDB: the process that clickhouse-connect and curl talk to.

Run as ``python -m replicator.embedded.clickhouse_front``; its order comes as one JSON line on standard input, which
stays open as the lifeline. Guarantees ClickHouse's own answers: codes, statuses, headers, formats, codings. A client
that goes away does not cancel its insert. It must never lose an error between the engine and the client, hold a whole
insert in memory, or outlive its parent. It injects no faults.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import anyio
import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from replicator.embedded.clickhouse_engine import Answer, Engine, EngineError, Query, clickhouse_error
from replicator.embedded.clickhouse_form import ExternalTable, is_form, read_form
from replicator.embedded.clickhouse_request import (
    Credentials,
    Demand,
    content_type,
    demand_of,
    external_table,
    http_status,
)
from replicator.embedded.clickhouse_statement import (
    HEAD_BYTES_MAX,
    Head,
    InlineInsert,
    leading_words,
    output_format,
    split_insert,
)
from replicator.embedded.clickhouse_stream import StreamedAnswer, joins_into_a_whole
from replicator.embedded.http_codings import CodingError, decoder, encode
from replicator.embedded.lifeline import STOP_SECONDS, on_parent_death

QUERIES_MAX = 64
STATEMENT_BYTES_MAX = 16 << 20
KEEP_ALIVE_SECONDS = 600
NO_SUCH_PATH = """There is no handle {path}

Use / or /ping for health checks.
Or /replicas_status for more sophisticated health checks.

Send queries from your program with POST method or GET /?query=...
"""


class Front:
    """Takes requests, hands their statements to the engine, words its answers as ClickHouse does."""

    def __init__(self, engine: Engine, spool: Path, credentials: Credentials) -> None:
        self._engine = engine
        self._spool = spool
        self._credentials = credentials
        self._threads = anyio.CapacityLimiter(QUERIES_MAX)
        self._running: set[str] = set()

    async def ping(self, _: Request) -> Response:
        """What load balancers and clients ask."""
        return PlainTextResponse("Ok.\n", headers={"X-ClickHouse-Server-Display-Name": self._engine.host_name})

    async def query(self, request: Request) -> Response:
        """Any request that may carry a query."""
        if request.method in ("GET", "HEAD") and not request.url.query:
            return await self.ping(request)
        demand = demand_of(request)
        body = request.stream()
        try:
            self._credentials.check(request)
            demand.check()
            return await self._answer(request, demand, body)
        except EngineError as error:
            refusal = error
        except CodingError as error:
            refusal = clickhouse_error(error.code, error.name, str(error))
        except ClientDisconnect:
            return Response(status_code=499)
        with suppress(ClientDisconnect):
            async for _ in body:  # what is left: a client that still sends would miss the answer
                pass
        return self._refusal(refusal, demand)

    async def _answer(self, request: Request, demand: Demand, body: AsyncIterator[bytes]) -> Response:
        coding = request.headers.get("content-encoding", "")
        with ExitStack() as spooled:
            if is_form(request.headers.get("content-type", "")):
                form = read_form(request.headers["content-type"], await _read_whole(body, coding))
                demand = demand_of(request, form)
                demand.check()
                tables = [self._spooled_table(request, *named, spooled) for named in form.files.items()]
                statement = demand.statement
            else:
                tables = ()
                spool = Spool(lambda: spooled.enter_context(self._spool_file()))
                statement = await _read(body, demand.statement, coding, spool)
            query = demand.query(statement, _first_word(statement), tables)
            format_name = output_format(statement) or demand.output_format
            if not demand.waits and not tables and joins_into_a_whole(query, format_name):
                return await self._streamed(request, query, format_name)
            with self._claimed(query.query_id):
                answer = await anyio.to_thread.run_sync(self._engine.run, query, limiter=self._threads)
        return self._whole(answer, demand, format_name)

    def _spool_file(self) -> IO[bytes]:
        return tempfile.NamedTemporaryFile(dir=self._spool, prefix="insert-")

    def _spooled_table(self, request: Request, name: str, content: bytes, spooled: ExitStack) -> ExternalTable:
        file = spooled.enter_context(self._spool_file())
        file.write(content)
        file.flush()
        return external_table(request, name, file.name)

    async def _streamed(self, request: Request, query: Query, format_name: str) -> Response:
        headers = self._headers(query.query_id) | {"X-ClickHouse-Format": format_name}
        streamed = StreamedAnswer(request, self._engine.stream(query), self._threads, headers)
        await streamed.begin()
        return streamed

    @contextmanager
    def _claimed(self, query_id: str) -> Iterator[None]:
        if query_id in self._running:
            name = "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING"
            raise clickhouse_error(216, name, f"Query with id = {query_id} is already running.")
        self._running.add(query_id)
        try:
            yield
        finally:
            self._running.discard(query_id)

    def _headers(self, query_id: str) -> dict[str, str]:
        return {
            "X-ClickHouse-Query-Id": query_id.encode("ascii", "backslashreplace").decode(),
            "X-ClickHouse-Server-Display-Name": self._engine.host_name,
            "X-ClickHouse-Timezone": self._engine.timezone,
        }

    def _whole(self, answer: Answer, demand: Demand, format_name: str) -> Response:
        headers = self._headers(demand.query_id) | {"X-ClickHouse-Summary": answer.summary()}
        if answer.has_result:
            headers["X-ClickHouse-Format"] = format_name
        output = answer.output
        if demand.coding and output:
            output = encode(output, demand.coding)
            headers["Content-Encoding"] = demand.coding
        return Response(output, headers=headers, media_type=content_type(format_name))

    def _refusal(self, error: EngineError, demand: Demand) -> Response:
        status = http_status(error.code)
        headers = self._headers(demand.query_id) | {"X-ClickHouse-Exception-Code": str(error.code)}
        if status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        return PlainTextResponse(error.text + "\n", status_code=status, headers=headers)


class Spool:
    """The file that an INSERT's inline data goes to, made when the first of it comes: most statements have none."""

    def __init__(self, create: Callable[[], IO[bytes]]) -> None:
        self._create = create
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        self._file = self._file or self._create()
        self._file.write(data)

    def name(self) -> str:
        """Where the data lies, all of it."""
        self.write(b"")
        assert self._file is not None
        self._file.flush()
        return self._file.name


async def _read(body: AsyncIterator[bytes], head: bytes, coding: str, spooled: Spool) -> bytes:
    """The statement to run. The inline data of an INSERT is spooled to a file, which the statement names."""
    decode = decoder(coding)
    head = head + b"\n" if head else b""
    insert = split_insert(head, complete=False)
    async for piece in body:
        decoded = decode.decode(piece)
        if isinstance(insert, InlineInsert):
            spooled.write(decoded)
            continue
        head += decoded
        if insert is Head.NEEDS_MORE:
            insert = _begin_insert(head, spooled, complete=len(head) > HEAD_BYTES_MAX)
        if insert is Head.NO_DATA:
            _check_size(head)
    decode.finish()
    if insert is Head.NEEDS_MORE:
        insert = _begin_insert(head, spooled, complete=True)
    return insert.from_file(spooled.name()) if isinstance(insert, InlineInsert) else head


async def _read_whole(body: AsyncIterator[bytes], coding: str) -> bytes:
    decode, head = decoder(coding), b""
    async for piece in body:
        head += decode.decode(piece)
        _check_size(head)
    decode.finish()
    return head


def _check_size(statement: bytes) -> None:
    if len(statement) > STATEMENT_BYTES_MAX:
        raise clickhouse_error(62, "SYNTAX_ERROR", f"Max query size exceeded ({STATEMENT_BYTES_MAX} bytes)")


def _begin_insert(head: bytes, spooled: Spool, *, complete: bool) -> InlineInsert | Head:
    insert = split_insert(head, complete=complete)
    if isinstance(insert, InlineInsert):
        spooled.write(head[insert.data_at :])
    return insert


def _first_word(statement: bytes) -> str:
    """What kind of statement it is; the engine takes garbage without any word for an empty success (chdb 4.4)."""
    words = leading_words(statement, 1)
    if words:
        return words[0]
    if not statement.strip():
        raise clickhouse_error(62, "SYNTAX_ERROR", "Empty query")
    shown = statement[:100].decode("utf-8", "backslashreplace")
    raise clickhouse_error(62, "SYNTAX_ERROR", f"Syntax error: failed at position 1 ({shown})")


async def _no_such_path(request: Request, _: Exception) -> Response:
    return PlainTextResponse(NO_SUCH_PATH.format(path=request.url.path), status_code=404)


def application(front: Front) -> Starlette:
    """The routes ClickHouse answers."""
    return Starlette(
        routes=[
            Route("/ping", front.ping, methods=["GET", "HEAD"]),
            Route("/replicas_status", front.ping, methods=["GET", "HEAD"]),
            Route("/", front.query, methods=["GET", "HEAD", "POST", "PUT"]),
        ],
        exception_handlers={404: _no_such_path},
    )


def main() -> None:
    """Serve until the parent lets go of the lifeline, or SIGTERM."""
    order = json.loads(sys.stdin.buffer.readline())
    directory = Path(order["directory"])
    spool = directory / "spool"
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir()
    try:
        engine = Engine(directory)
    except RuntimeError as error:  # chDB adds its stack trace to the message
        sys.exit(str(error).partition("Stack trace")[0].splitlines()[0])
    front = Front(engine, spool, Credentials(user=order["user"], password=order["password"]))
    server = uvicorn.Server(
        uvicorn.Config(
            application(front),
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(STOP_SECONDS),
        )
    )
    on_parent_death(lambda: _stop(server))
    server.run(sockets=[socket.socket(fileno=order["listening_fd"])])
    engine.close()


def _stop(server: uvicorn.Server) -> None:
    """Ask for an orderly stop, and end the process if that takes too long."""
    deadline = threading.Timer(STOP_SECONDS, os.kill, (os.getpid(), signal.SIGKILL))
    deadline.daemon = True
    deadline.start()
    server.should_exit = True


if __name__ == "__main__":
    main()

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
from replicator.embedded.clickhouse_request import Credentials, Demand, demand_of, http_status
from replicator.embedded.clickhouse_statement import HEAD_BYTES_MAX, Head, InlineInsert, output_format, split_insert
from replicator.embedded.http_codings import CodingError, decoder, encode
from replicator.embedded.lifeline import STOP_SECONDS, on_parent_death

QUERIES_MAX = 64
STATEMENT_BYTES_MAX = 64 << 20


class Front:
    """Takes requests, hands their statements to the engine, words its answers as ClickHouse does."""

    def __init__(self, engine: Engine, spool: Path, credentials: Credentials) -> None:
        self._engine = engine
        self._spool = spool
        self._credentials = credentials
        self._threads = anyio.CapacityLimiter(QUERIES_MAX)

    async def ping(self, _: Request) -> Response:
        """What load balancers and clients ask."""
        return PlainTextResponse("Ok.\n", headers={"X-ClickHouse-Server-Display-Name": self._engine.host_name})

    async def query(self, request: Request) -> Response:
        """Any request that may carry a query."""
        if request.method == "GET" and not request.url.query:
            return await self.ping(request)
        demand = None
        try:
            demand = demand_of(request)
            self._credentials.check(request)
            with tempfile.NamedTemporaryFile(dir=self._spool, prefix="insert-") as spooled:
                query = await self._read(request, demand, spooled.file)
                answer = await anyio.to_thread.run_sync(self._engine.run, query, limiter=self._threads)
        except EngineError as error:
            return self._refusal(error, demand)
        except CodingError as error:
            return self._refusal(clickhouse_error(error.code, error.name, str(error)), demand)
        except ClientDisconnect:
            return Response(status_code=499)
        return self._response(answer, demand, output_format(query.statement.encode()) or demand.output_format)

    async def _read(self, request: Request, demand: Demand, spooled: IO[bytes]) -> Query:
        """The statement, its inline data (if any) gone to ``spooled``."""
        decode = decoder(request.headers.get("content-encoding", ""))
        head = demand.statement + b"\n" if demand.statement else b""
        insert: InlineInsert | Head = split_insert(head, complete=False)
        async for piece in request.stream():
            decoded = decode.decode(piece)
            if isinstance(insert, InlineInsert):
                spooled.write(decoded)
                continue
            head += decoded
            if insert is Head.NEEDS_MORE:
                insert = split_insert(head, complete=len(head) > HEAD_BYTES_MAX)
                if isinstance(insert, InlineInsert):
                    spooled.write(head[insert.data_at :])
            if len(head) > STATEMENT_BYTES_MAX:
                raise clickhouse_error(62, "SYNTAX_ERROR", f"Max query size exceeded: {STATEMENT_BYTES_MAX} bytes")
        decode.finish()
        if insert is Head.NEEDS_MORE:
            insert = split_insert(head, complete=True)
            if isinstance(insert, InlineInsert):
                spooled.write(head[insert.data_at :])
        spooled.flush()
        if isinstance(insert, InlineInsert):
            return demand.query(insert.from_file(spooled.name))
        return demand.query(head.decode("utf-8", "surrogateescape"))

    def _headers(self, demand: Demand | None) -> dict[str, str]:
        headers = {
            "X-ClickHouse-Server-Display-Name": self._engine.host_name,
            "X-ClickHouse-Timezone": self._engine.timezone,
        }
        if demand is not None:
            headers["X-ClickHouse-Query-Id"] = demand.query_id
        return headers

    def _response(self, answer: Answer, demand: Demand, format_name: str) -> Response:
        headers = self._headers(demand) | {"X-ClickHouse-Summary": answer.summary()}
        if answer.has_result:
            headers["X-ClickHouse-Format"] = format_name
        body = answer.output
        if demand.coding and body:
            body = encode(body, demand.coding)
            headers["Content-Encoding"] = demand.coding
        return Response(body, headers=headers, media_type="text/plain; charset=UTF-8")

    def _refusal(self, error: EngineError, demand: Demand | None) -> Response:
        headers = self._headers(demand) | {"X-ClickHouse-Exception-Code": str(error.code)}
        return PlainTextResponse(error.text + "\n", status_code=http_status(error.code), headers=headers)


def application(front: Front) -> Starlette:
    """The routes ClickHouse answers."""
    return Starlette(
        routes=[
            Route("/ping", front.ping, methods=["GET", "HEAD"]),
            Route("/replicas_status", front.ping, methods=["GET", "HEAD"]),
            Route("/", front.query, methods=["GET", "HEAD", "POST", "PUT"]),
        ]
    )


def main() -> None:
    """Serve until the parent lets go of the lifeline, or SIGTERM."""
    order = json.loads(sys.stdin.buffer.readline())
    directory = Path(order["directory"])
    spool = directory / "spool"
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir(parents=True)
    listening = socket.socket(fileno=order["listening_fd"])
    engine = Engine(directory / "engine")
    front = Front(engine, spool, Credentials(user=order["user"], password=order["password"]))
    config = uvicorn.Config(application(front), log_level="warning", timeout_graceful_shutdown=int(STOP_SECONDS))
    server = uvicorn.Server(config)
    on_parent_death(lambda: _stop(server))
    server.run(sockets=[listening])
    engine.close()


def _stop(server: uvicorn.Server) -> None:
    """Ask for an order stop, and end the process if that takes too long."""
    threading.Timer(STOP_SECONDS, os.kill, (os.getpid(), signal.SIGKILL)).start()
    server.should_exit = True


if __name__ == "__main__":
    main()

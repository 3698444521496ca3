"""The service's HTTP interface as a thread: bound before anything starts, stopped before the database closes.

Guarantees: listens on ``[serve]`` host and port only; a taken port or an unusable certificate ends the start with an
error that says so. Never started twice.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import structlog
from attrs import define, field

from replicator.config import Serve, Settings
from replicator.errors import ConfigError, ReplicatorError
from replicator.server_tokens import remove_address, write_address

STOP_SECONDS = 3
BACKLOG = 128
TICK_SECONDS = 0.5

log = structlog.get_logger(__name__)


class PortUnavailable(ReplicatorError):
    """The interface cannot have its address: the operator frees it or chooses another."""


@define
class HttpServer:
    """Bind it, start it, stop it."""

    settings: Settings
    instance_id: str
    url: str = field(default="", init=False)
    error: BaseException | None = field(default=None, init=False)
    _socket: socket.socket = field(init=False)
    _server: object = field(default=None, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _ready: threading.Event = field(factory=threading.Event, init=False)

    def bind(self) -> HttpServer:
        """Take the address. Raises PortUnavailable or ConfigError."""
        serve = self.settings.serve
        check_certificate(serve)
        self._socket = _bound(serve.host, serve.port)
        host = f"[{serve.host}]" if ":" in serve.host else serve.host
        scheme = "https" if serve.tls_cert else "http"
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}"
        return self

    def start(self, application: Callable[[], object]) -> None:
        """Answer from now on; returns at once. ``application`` is called in the server's thread, to load it there."""
        self._thread = threading.Thread(target=self._run, args=(application,), name="http", daemon=True)
        self._thread.start()

    def wait_until_ready(self, timeout_seconds: float = 30.0) -> bool:
        return self._ready.wait(timeout_seconds) and self.error is None

    def stop(self) -> None:
        """Finish what is being answered, for a few seconds, then let go of the address."""
        remove_address(self.settings)
        if self._server is not None:
            self._server.should_exit = True  # type: ignore[attr-defined]
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
        self._socket.close()

    def _run(self, application: Callable[[], object]) -> None:
        try:
            self._serve(application())
        except BaseException as error:
            self.error = error
            log.error("http_failed", url=self.url, error=str(error), exc_info=True)
        finally:
            self._ready.set()

    def _serve(self, application: object) -> None:
        import uvicorn  # noqa: PLC0415 - loaded beside the loops, which need not wait for it

        from replicator.server_guard import Guard, GuardedProtocol  # noqa: PLC0415

        serve = self.settings.serve
        config = uvicorn.Config(
            Guard(application, serve.host),  # type: ignore[arg-type]
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=STOP_SECONDS - 1,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=16 << 10,
            ssl_certfile=serve.tls_cert,
            ssl_keyfile=serve.tls_key,
        )
        server = self._server = _calm(uvicorn.Server)(config)
        write_address(self.settings, self.url, self.instance_id)
        self._ready.set()
        log.info("http_ready", url=self.url)
        server.run(sockets=[self._socket])


def _calm(server: type[Any]) -> type[Any]:
    """uvicorn's server, less restless: its ten looks a second whether to stop are a fifth of what the service does idle."""

    class Calm(server):  # type: ignore[misc]
        async def main_loop(self) -> None:
            while not await self.on_tick(0):  # which also renews the Date header
                await asyncio.sleep(TICK_SECONDS)

    return Calm


def check_certificate(serve: Serve) -> None:
    """Raise ConfigError when the certificate and its key cannot be used together."""
    if serve.tls_cert is None or serve.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(serve.tls_cert, serve.tls_key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"replicator.toml [serve] tls_cert = {str(serve.tls_cert)!r}, tls_key = {str(serve.tls_key)!r}: "
            f"cannot be used together: {error}",
            hint="both in PEM, the key without a passphrase and belonging to the certificate",
        ) from error


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
            bound.listen(BACKLOG)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise PortUnavailable(
            f"the HTTP interface cannot have {host}:{port}: {error.strerror or error}",
            hint="stop the program that holds it, or choose another [serve] port in replicator.toml",
        ) from error
    return bound

"""The commands' way to the running service: find it, be sure that it is ours, ask it.

Guarantees: a token goes only to the service that holds this database; what the service answers as an error is raised
as one. Speaks to the address the service wrote beside its database, or to the configured one.
"""

from __future__ import annotations

import fcntl
import getpass
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import urllib3
from attrs import define, field

from replicator.config import Settings
from replicator.errors import (
    ConfigError,
    DatabaseUnavailable,
    ReplicatorError,
    SinkUnavailable,
    SourceUnavailable,
    UsageError,
)
from replicator.query_question import EntryNotCaptured
from replicator.server_tokens import find_token, read_address

CONNECT_SECONDS = 3.0
KINDS: dict[str, type[ReplicatorError]] = {
    "usage": UsageError,
    "usage_error": UsageError,
    "query_failed": UsageError,
    "query_refused": UsageError,
    "not_found": UsageError,
    "malformed": UsageError,
    "config_error": ConfigError,
    "sink_unavailable": SinkUnavailable,
    "source_unavailable": SourceUnavailable,
    "database_unavailable": DatabaseUnavailable,
    "queries_busy": DatabaseUnavailable,
    "entry_not_captured": EntryNotCaptured,
}


class ServiceUnavailable(ReplicatorError):
    """A process holds the database, and its HTTP interface does not answer as ours."""


def database_in_use(settings: Settings) -> bool:
    """Whether another process owns the DuckDB file, found without opening it as a database."""
    path = settings.writer.database.path
    try:
        with path.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_UN)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError) as error:
        if isinstance(error, PermissionError) and error.filename is not None:
            raise DatabaseUnavailable(
                f"{path} cannot be read: {error.strerror}", hint="run as the user the service runs as"
            ) from error
        return True
    return False


@define
class Client:
    """Asks one running service."""

    settings: Settings
    url: str
    pid: int | None
    timeout_seconds: float = 15.0
    _pool: urllib3.PoolManager = field(init=False)

    def __attrs_post_init__(self) -> None:
        options: dict[str, Any] = {"retries": False}
        if self.url.startswith("https"):
            options |= {"ssl_context": _pinned(self.settings), "assert_hostname": False}
        self._pool = urllib3.PoolManager(**options)

    def get(self, path: str, *, role: str = "read", **query: Any) -> Any:
        """Raises what the service answered, or ServiceUnavailable."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._ask("GET", f"{path}?{urlencode(given)}" if given else path, role, None)

    def post(self, path: str, body: dict[str, Any], *, timeout_seconds: float | None = None) -> Any:
        """Raises what the service answered, or ServiceUnavailable."""
        return self._ask("POST", path, "admin", body, timeout_seconds)

    @contextmanager
    def stream(
        self, path: str, body: dict[str, Any], *, accept: str, timeout_seconds: float
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """An answer to be read piece by piece, asked for with the read token. Raises as the others do."""
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=timeout_seconds)
        headers = {**self._headers("read"), "Accept": accept}
        try:
            answer = self._pool.request(
                "POST", self.url + path, headers=headers, json=body, timeout=timeout, preload_content=False
            )
            refusal = answer.json() if answer.status >= 400 else None
        except (urllib3.exceptions.HTTPError, ValueError, OSError) as error:
            raise self._silent(str(error)) from error
        if refusal is not None:
            raise _error(answer.status, refusal)
        try:
            yield answer
        finally:
            answer.close()

    def metrics(self) -> str:
        """What `/metrics` says. Raises ServiceUnavailable."""
        try:
            answer = self._pool.request(
                "GET", f"{self.url}/metrics", headers=self._headers("read"), timeout=self.timeout_seconds
            )
        except urllib3.exceptions.HTTPError as error:
            raise self._silent(str(error)) from error
        if answer.status != 200:
            raise self._silent(f"/metrics answers {answer.status}")
        return answer.data.decode()

    def _ask(
        self, method: str, path: str, role: str, body: dict[str, Any] | None, timeout_seconds: float | None = None
    ) -> Any:
        return self._call(method, path, self._headers(role), body, timeout_seconds or self.timeout_seconds)

    def _headers(self, role: str) -> dict[str, str]:
        token = find_token(self.settings, role) or find_token(self.settings, "admin")
        if token is None:
            raise UsageError(
                f"the {role} token is not to be found",
                hint="run as the user the service runs as, or set REPLICATOR_ADMIN_TOKEN or REPLICATOR_READ_TOKEN",
            )
        return {"Authorization": f"Bearer {token}", "X-Replicator-Actor": local_actor()}

    def _call(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: dict[str, Any] | None,
        timeout_seconds: float,
        also: tuple[int, ...] = (),
    ) -> Any:
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=timeout_seconds)
        try:
            answer = self._pool.request(method, self.url + path, headers=headers, json=body, timeout=timeout)
            content = answer.json()
        except (urllib3.exceptions.HTTPError, ValueError, OSError) as error:
            raise self._silent(str(error)) from error
        if answer.status < 400 or answer.status in also:
            return content
        raise _error(answer.status, content)

    def greet(self) -> Client:
        """See that what answers is a replicator of this pipeline. Raises ServiceUnavailable."""
        hello = self._call("GET", "/livez", {}, None, CONNECT_SECONDS, also=(503,))  # part of it hangs: it is there
        if not isinstance(hello, dict) or hello.get("service") != "replicator":
            raise self._silent("something else answers there")
        if hello.get("pipeline") != self.settings.pipeline.name:
            raise self._silent(f"pipeline {hello.get('pipeline')} answers there")
        return self

    def _silent(self, why: str) -> ServiceUnavailable:
        owner = f"process {self.pid}" if self.pid else "another process"
        return ServiceUnavailable(
            f"{self.settings.writer.database.path} is in use by {owner}, and no replicator answers at {self.url}: {why}",
            hint="wait until it has started, look into its log, or check [serve] host and port",
        )


def connect(settings: Settings) -> Client | None:
    """The running service, None when no process owns the database. Raises ServiceUnavailable."""
    return reach(settings) if database_in_use(settings) else None


def reach(settings: Settings, *, greet: bool = True) -> Client:
    """The service that owns the database; the caller knows that it is in use. Raises ServiceUnavailable."""
    note = read_address(settings)
    url, pid = note.get("url"), note.get("pid")
    client = Client(
        settings=settings,
        url=_reachable(url) if isinstance(url, str) else _configured_url(settings),
        pid=pid if isinstance(pid, int) else None,
    )
    return client.greet() if greet else client


def _configured_url(settings: Settings) -> str:
    serve = settings.serve
    host = f"[{serve.host}]" if ":" in serve.host else serve.host
    return _reachable(f"{'https' if serve.tls_cert else 'http'}://{host}:{serve.port}")


def _reachable(url: str) -> str:
    """An address that listens everywhere is called on loopback."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _pinned(settings: Settings) -> ssl.SSLContext:
    """Trusts exactly the certificate that is configured for the service, whatever name it bears."""
    context = ssl.create_default_context(cafile=settings.serve.tls_cert)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def local_actor() -> str:
    """Who runs this command, for the record."""
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):
        return "cli"


def _error(status: int, content: Any) -> ReplicatorError:
    found = content.get("error", {}) if isinstance(content, dict) else {}
    message, hint = found.get("message") or f"the service answered {status}", found.get("hint") or ""
    kind = found.get("kind", "")
    if status in (401, 403):
        return UsageError(f"the service refuses the token: {message}", hint=hint)
    if kind == "config_error":
        return ConfigError(message, hint=hint)
    return KINDS.get(kind, ReplicatorError if status >= 500 and status != 503 else ServiceUnavailable)(
        message, hint=hint
    )

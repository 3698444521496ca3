"""A replicator as anyone runs it: a configuration directory, ``python -m replicator run`` as a process, its commands.

Nothing started here outlives the test: leave the ``with`` block and the process is gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

import forked
import redis
import urllib3
from attrs import define, field

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey

START_SECONDS = 120.0
WAIT_SECONDS = 60.0
KEPT_VARIABLES = ("PATH", "PYTHONPATH", "HOME", "TMPDIR", "LANG", "USER")


def until(condition: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """Wait for a condition, and fail naming it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.03)
    raise AssertionError(f"not within {seconds} s: {what}")


def add(source: redis.Redis, first: int, last: int, stream: str = "trades") -> None:
    """Put changes ``{"n": first}`` to ``{"n": last}`` into a stream."""
    pipe = source.pipeline(transaction=False)
    for number in range(first, last + 1):
        pipe.xadd(stream, {"data": json.dumps({"n": number})})
    pipe.execute()


@contextmanager
def running_alone(
    directory: Path, valkey: Valkey, clickhouse: ClickHouse, database: str, **options: Any
) -> Iterator[Replicator]:
    """A service for the tests of one module, alone on the engines; it must end well, without a fault of ours."""
    valkey.start()
    clickhouse.start()
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()  # the pipeline belonged to another module's instance
    environment = {
        "REDIS_URL": valkey.url,
        "CLICKHOUSE_ENDPOINT": clickhouse.endpoint,
        "CLICKHOUSE_USER": clickhouse.user,
        "CLICKHOUSE_PASSWORD": clickhouse.password,
        **options.pop("environment", {}),
    }
    clickhouse.execute(f"create database if not exists {database}")
    with Replicator(directory=directory, environment=environment, database=database, **options) as replicator:
        replicator.start()
        yield replicator
        assert replicator.stop() == 0, replicator.log_text
        assert not replicator.events("request_failed")
    clickhouse.start().execute(f"drop database {database} sync")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@define
class Answered:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@define(kw_only=True)
class Replicator:
    """``tables`` and ``sections`` are TOML; ``environment`` leads to the engines."""

    directory: Path
    environment: dict[str, str]
    streams: str = '["trades"]'
    sections: str = ""
    database: str = "default"
    fresh: bool = False
    """Whether the service is an interpreter of its own, with its own command line, not a fork of one."""
    process: subprocess.Popen[bytes] | forked.Forked | None = field(default=None, init=False)
    token: str = field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        (self.directory / "config").mkdir(parents=True, exist_ok=True)
        self.configure()

    def configure(self, *, streams: str | None = None, sections: str | None = None, level: str = "INFO") -> None:
        """Write the two files that matter; the rest are defaults."""
        self.streams, self.sections = streams or self.streams, self.sections if sections is None else sections
        self.write(
            "replicator.toml",
            f'[redis]\nstreams = {self.streams}\n[clickhouse]\ndatabase = "{self.database}"\n'
            f"connect_timeout_sec = 2\n{self.sections}\n",
        )
        self.write(
            "duckdb_rust_config.toml",
            f'[logging]\nlog_level = "{level}"\n[sync]\nsync_interval_sec = 0.1\nmax_retry_attempts = 2\n'
            "[error_handling]\nretry_backoff_sec = [0.2, 0.3]\n",
        )

    def write(self, name: str, text: str) -> None:
        path = self.directory / "config" / name
        path.write_text(text)
        path.chmod(0o600)

    # ── the process ──

    def start(self, *, ready: bool = True) -> Self:
        """Run the service; wait until it answers over HTTP."""
        with Path(os.devnull).open("rb") as nothing, self._out_path.open("wb") as out, self.log_path.open("wb") as log:
            self.process = self._launch(["run"], [nothing, out, log], fresh=self.fresh)
        if ready:
            until(self._is_ready, "the service answers over HTTP", START_SECONDS)
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_text
        return "http_ready" in self.log_text

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """The exit code of a service that ends by itself."""
        assert self.process is not None
        code = self.process.wait(seconds)
        assert self._out_path.read_bytes() == b"", "run prints nothing on stdout"
        self.process = None
        return code

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(60)

    def kill(self) -> None:
        """``kill -9``."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _launch(
        self, arguments: Sequence[str], streams: Sequence[IO[Any]], *, fresh: bool = False
    ) -> subprocess.Popen[bytes] | forked.Forked:
        kept = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES}
        environment, words = {**kept, **self.environment}, ["--config-dir", str(self.config_dir), *arguments]
        if not fresh and not any(name.startswith("PYTHON") for name in self.environment):
            return forked.start(words, environment=environment, directory=self.directory, streams=streams)
        stdin, stdout, stderr = streams
        command = [sys.executable, "-m", "replicator", *words]
        return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, cwd=self.directory)

    # ── what it left and says ──

    @property
    def config_dir(self) -> Path:
        return self.directory / "config"

    @property
    def database_path(self) -> Path:
        return self.directory / "data" / "replicator.duckdb"

    @property
    def log_path(self) -> Path:
        return self.directory / "stderr.log"

    @property
    def _out_path(self) -> Path:
        return self.directory / "stdout.log"

    @property
    def log_text(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = [json.loads(line) for line in self.log_text.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    def command(self, *arguments: str, stdin: str = "") -> Answered:
        """Run one command to its end."""
        with (
            tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err
        ):  # fmt: skip
            given.write(stdin)
            given.seek(0)
            process = self._launch(arguments, [given, out, err])
            try:
                code = process.wait(90)
            finally:
                process.kill()
            out.seek(0)
            err.seek(0)
            return Answered(code, out.read(), err.read())

    # ── HTTP ──

    @property
    def url(self) -> str:
        note = json.loads(self.database_path.with_name("replicator.duckdb.service.json").read_text())
        return str(note["url"])

    def http(
        self, method: str, path: str, *, token: str | None = "admin", body: Any = None, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        """One request; ``token`` is ``admin``, ``read``, None, or taken as it is."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token in ("admin", "read"):
            token = self.database_path.with_name(f"replicator.duckdb.{token}_token").read_text().strip()
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if content is not None:
            sent.setdefault("Content-Type", "application/json")
        with urllib3.PoolManager(retries=False) as pool:
            return pool.request(method, self.url + path, body=content, headers=sent, timeout=30)

    def status(self, token: str = "admin") -> dict[str, Any]:
        report: dict[str, Any] = self.http("GET", "/api/v1/status", token=token).json()
        return report

    def until_status(
        self, condition: Callable[[dict[str, Any]], Any], what: str, token: str = "admin"
    ) -> dict[str, Any]:
        """The first report that meets a condition."""
        report: dict[str, Any] = {}

        def holds() -> bool:
            nonlocal report
            report = self.status(token)
            return bool(condition(report))

        try:
            until(holds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{json.dumps(report, indent=1)}") from None
        return report

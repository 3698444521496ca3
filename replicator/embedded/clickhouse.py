"""The embedded ClickHouse: chDB in a process of its own, behind the HTTP front that ClickHouse's clients speak to.

Guarantees that it answers before ``start`` returns, that what was acknowledged is there after a restart, and that it
stops with its parent, whatever kills that. It must never listen beyond loopback, nor load chDB into this process.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import urllib3
from attrs import define, field

from replicator.embedded.claims import LOOPBACK, bound_socket, claimed
from replicator.embedded.lifeline import release, size, spawn, tail
from replicator.errors import ReplicatorError

START_SECONDS = 60.0
EXECUTE_SECONDS = 120.0
"""urllib3's own is 3 seconds, which dropping a database can take."""
_PATTERN = re.compile(r"[*?{}]")


@define(kw_only=True)
class ClickHouse:
    """One chDB engine in ``directory`` with its HTTP front. ``port`` None means a free one, kept over restarts."""

    directory: Path = field(converter=Path)
    port: int | None = None
    user: str = "default"
    password: str = field(default="", repr=False)
    pid: int = field(default=0, init=False)
    _front: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def endpoint(self) -> str:
        """The address for a ClickHouse HTTP client."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._front is not None and self._front.poll() is None

    @property
    def log_path(self) -> Path:
        """Where the server process writes its errors."""
        return self.directory / "clickhouse.log"

    def start(self) -> Self:
        """Start and wait until it answers; raises ReplicatorError otherwise."""
        if self.running:
            return self
        if importlib.util.find_spec("chdb") is None:
            raise ReplicatorError("the embedded ClickHouse is not installed", hint="pip install 'replicator[embedded]'")
        self.stop()
        self._check_directory()
        with claimed(self.directory, engine="ClickHouse") as lock:
            log_start = size(self.log_path)
            self._launch(lock)
            try:
                self._await_ready(log_start)
            except BaseException:
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """Stop in order: running queries end, the data is on disk."""
        if self._front is not None:
            release(self._front)
        self._front, self.pid = None, 0

    def kill(self) -> None:
        """Kill the server with -9, as a crash would."""
        if self._front is not None:
            self._front.kill()
        self.stop()

    def restart(self) -> Self:
        """Stop in order and start again on the same port and data."""
        self.stop()
        return self.start()

    def execute(self, statement: str) -> str:
        """Run one statement and return its output as text; for set-up and inspection, not for data."""
        response = urllib3.request(
            "POST",
            self.endpoint,
            body=statement.encode(),
            headers={"X-ClickHouse-User": self.user, "X-ClickHouse-Key": self.password},
            retries=False,
            timeout=EXECUTE_SECONDS,
        )
        text = response.data.decode(errors="replace")
        if response.status != 200:
            raise ReplicatorError(f"the embedded ClickHouse refused: {text.strip()}", code=response.status)
        return text

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, lock: int) -> None:
        with bound_socket(self.port, engine="ClickHouse") as listening:
            self.port = int(listening.getsockname()[1])
            listening.listen(128)
            command = [sys.executable, "-P", "-m", "replicator.embedded.clickhouse_front"]
            self._front = spawn(command, output=self.log_path, pass_fds=(listening.fileno(), lock))
            self.pid = self._front.pid
            self._hand_over(listening.fileno())

    def _check_directory(self) -> None:
        """Inserts pass through files here, whose names chDB takes for patterns."""
        if _PATTERN.search(str(self.directory.resolve())):
            raise ReplicatorError(
                f"the embedded ClickHouse cannot live in {str(self.directory)!r}", hint="choose a path without * ? { }"
            )

    def _hand_over(self, listening_fd: int) -> None:
        """What the front must know, by the lifeline's pipe: no secret shows in a process list."""
        assert self._front is not None and self._front.stdin is not None
        order = {
            "directory": str(self.directory.resolve()),
            "listening_fd": listening_fd,
            "user": self.user,
            "password": self.password,
        }
        try:
            self._front.stdin.write(json.dumps(order).encode() + b"\n")
            self._front.stdin.flush()
        except BrokenPipeError:
            return  # it ended at once; the wait for readiness says why

    def _await_ready(self, log_start: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        with urllib3.PoolManager(retries=False) as http:
            while time.monotonic() < deadline and self.running:
                try:
                    if http.request("GET", f"{self.endpoint}/ping", timeout=START_SECONDS).data == b"Ok.\n":
                        return
                except urllib3.exceptions.HTTPError:
                    time.sleep(0.02)
        what = f"did not answer within {START_SECONDS:g} s" if self.running else "ended"
        raise ReplicatorError(
            f"the embedded ClickHouse {what}: {tail(self.log_path, start=log_start)}", hint=f"see {self.log_path}"
        )

"""The processes in which readers' queries are computed, as the service holds them: started when needed, used again.

Guarantees: none inherits a secret or an open file; none outlives the service; one that was killed leaves no file behind.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from attrs import define, field

IDLE_MAX = 2
IDLE_SECONDS = 120.0
MEMORY_MB_MAX = 512
MEMORY_SHARE = 16
"""Each process lets DuckDB have one part in so many of the machine's memory, within the bound above."""
TEMP_MB_MAX = 20_000
INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZDIR", "PYTHONHOME", "COVERAGE_PROCESS_START")
OWN = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Arrow's own allocator reserves a gigabyte at its start, which would count as taken."""


@define(eq=False)
class QueryProcess:
    """One process; it computes one query at a time."""

    process: subprocess.Popen[bytes]
    directory: Path
    expiry: threading.Timer | None = None

    @classmethod
    def spawn(cls, directory: Path) -> QueryProcess:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix="query-", dir=directory))
        options = {
            "threads": max(1, min(4, (os.cpu_count() or 2) // 2)),
            "memory_mb": min(
                MEMORY_MB_MAX, (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20) // MEMORY_SHARE
            ),
            "temp_directory": str(own),
            "temp_mb": min(TEMP_MB_MAX, shutil.disk_usage(own).free >> 22),
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "replicator.query_worker", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in INHERITED if name in os.environ} | OWN,
            start_new_session=True,
        )
        return cls(process=process, directory=own)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def request(self, request: Mapping[str, Any]) -> None:
        """Hand a query over. Raises OSError when the process has ended."""
        assert self.process.stdin is not None
        content = json.dumps(request, default=str).encode()
        self.process.stdin.write(struct.pack("<I", len(content)) + content)
        self.process.stdin.flush()

    def sink(self) -> pa.NativeFile:
        """Where the rows of tables go."""
        return pa.PythonFile(self.process.stdin, mode="w")

    def receive(self) -> tuple[bytes, bytes]:
        """Kind and content of the next piece of the answer; empty when the process has ended."""
        assert self.process.stdout is not None
        head = self.process.stdout.read(5)
        if len(head) < 5:
            return b"", b""
        size: int = struct.unpack("<I", head[1:])[0]
        return head[:1], self.process.stdout.read(size)

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self.process.kill()

    def bury(self) -> None:
        """End it, wait for that, and take its files away. Call when nobody reads from it or writes to it any more."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what was still to be written has no reader any more
                    pipe.close()
        shutil.rmtree(self.directory, ignore_errors=True)


@define
class QueryProcesses:
    """Those that wait for the next query. ``directory`` is for what does not fit into memory."""

    directory: Path
    _idle: list[QueryProcess] = field(factory=list)
    _closed: bool = False
    _lock: threading.Lock = field(factory=threading.Lock)

    def take(self) -> QueryProcess:
        """One that waits, or a new one."""
        while True:
            with self._lock:
                found = self._idle.pop() if self._idle else None
            if found is None:
                return QueryProcess.spawn(self.directory)
            assert found.expiry is not None
            found.expiry.cancel()
            if found.alive:
                return found
            found.bury()

    def give_back(self, process: QueryProcess) -> None:
        """Keep it for the next query, for a while."""
        with self._lock:
            keep = not self._closed and len(self._idle) < IDLE_MAX
            if keep:
                process.expiry = threading.Timer(IDLE_SECONDS, self._expire, [process])
                process.expiry.daemon = True
                process.expiry.start()
                self._idle.append(process)
        if not keep:
            process.bury()

    def _expire(self, process: QueryProcess) -> None:
        with self._lock:
            waits = process in self._idle
            if waits:
                self._idle.remove(process)
        if waits:
            process.bury()

    def close(self) -> None:
        """End those that wait; those given back later end as well."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            if process.expiry is not None:
                process.expiry.cancel()
            process.bury()

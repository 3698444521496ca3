"""Replicator processes without the second and a half that importing the program takes each time.

A nursery imports it once. For every start it forks, and the child takes the directory, environment and streams of a
new process and runs ``python -m replicator`` in them: a process of its own, that signals and kills meet. What only a
fresh interpreter has, its command line and the variables named PYTHON…, needs `subprocess` instead.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from attrs import define, field

NUMBER = struct.Struct("=i")
REQUEST_MAX = 1 << 17
IMPORTED = ("replicator.cli", "replicator.cli_run", "replicator.service", "replicator.server", "replicator.metrics")


@define
class Forked:
    """What `subprocess.Popen` offers of a running process, as far as the tests use it."""

    pid: int
    _ended: int
    """A pipe that will hold the wait status."""
    returncode: int | None = field(default=None, init=False)

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises `subprocess.TimeoutExpired`."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("replicator", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], seconds)[0]:
            self.returncode = os.waitstatus_to_exitcode(_number(self._ended))
            os.close(self._ended)
        return self.returncode


def start(
    arguments: Sequence[str], *, environment: Mapping[str, str], directory: os.PathLike[str], streams: Sequence[IO[Any]]
) -> Forked:
    """``python -m replicator ARGUMENTS`` on these three streams, with nothing else in its environment."""
    request = json.dumps([list(arguments), dict(environment), os.fspath(directory)]).encode()
    ended, ends = os.pipe()
    try:
        socket.send_fds(_nursery(), [request], [*(stream.fileno() for stream in streams), ends])
    finally:
        os.close(ends)
    return Forked(_number(ended), ended)


def _number(file: int) -> int:
    read = os.read(file, NUMBER.size)
    assert read, "the process that forks is gone"
    (number,) = NUMBER.unpack(read)
    return int(number)


@functools.cache
def _nursery() -> socket.socket:
    """Where this test process sends its requests. The nursery ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nursery = subprocess.Popen([sys.executable, "-P", __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(nursery.wait)
    atexit.register(ours.close)
    return ours


# ── in the nursery ──


def main() -> None:
    """Fork for every request, until the test process is gone."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, files, _, _ = socket.recv_fds(requests, REQUEST_MAX, 4)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            return _watch(request, files)
        for file in files:
            os.close(file)


def _watch(request: bytes, files: Sequence[int]) -> None:
    """Fork what was asked for, tell its process id, then how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, ends = files
    pid = os.fork()
    if pid == 0:
        os.close(ends)
        return _become(*json.loads(request), streams)
    for file in streams:
        os.close(file)
    os.write(ends, NUMBER.pack(pid))
    os.write(ends, NUMBER.pack(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _become(arguments: list[str], environment: dict[str, str], directory: str, streams: Sequence[int]) -> None:
    from replicator import failpoints

    for place, file in enumerate(streams):
        os.dup2(file, place)
        os.close(file)
    sys.stdin, sys.stdout = os.fdopen(0, "r", encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    time.tzset()
    tempfile.tempdir = None
    random.seed()
    failpoints.arm(environment.get("REPLICATOR_FAILPOINTS", ""))
    sys.argv = ["replicator", *arguments]
    runpy.run_module("replicator", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

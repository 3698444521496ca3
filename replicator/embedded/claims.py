"""What an embedded engine must have for itself: its loopback port and its directory.

What is taken is an error that names it and the remedy, never an engine that fails later or ruins another's files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from replicator.embedded.lifeline import STOP_SECONDS
from replicator.errors import ReplicatorError

LOOPBACK = "127.0.0.1"


class PortTaken(ReplicatorError):
    """An engine cannot have its port: the operator frees it or chooses another."""

    def __init__(self, port: int, *, engine: str, reason: str) -> None:
        super().__init__(
            f"port {port} on {LOOPBACK} is not available to the embedded {engine}: {reason}",
            hint="stop the program that holds it, or choose another port",
        )


def bound_socket(port: int | None, *, engine: str) -> socket.socket:
    """A TCP socket bound on loopback to ``port``, or to a free one when it is None."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((LOOPBACK, port or 0))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PortTaken(port or 0, engine=engine, reason=reason or str(error)) from error
    return bound


def pick_port(port: int | None, *, engine: str) -> int:
    """``port`` if it can be bound now, else an error; a free one when it is None."""
    with bound_socket(port, engine=engine) as bound:
        return int(bound.getsockname()[1])


@contextlib.contextmanager
def claimed(directory: Path, *, engine: str) -> Iterator[int]:
    """Make ``directory`` and hold its lock, a descriptor that the engine is to inherit and so to hold for its life.

    Two engines on the same files would ruin them. One whose parent has just died is given the time to stop.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ReplicatorError(
            f"the embedded {engine} cannot use {directory}: {error.strerror}", hint="choose a directory it may write to"
        ) from error
    deadline = time.monotonic() + STOP_SECONDS + 1
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ReplicatorError(
                        f"another embedded {engine} runs in {directory}", hint="stop it, or choose another directory"
                    ) from error
                time.sleep(0.02)
        yield lock
    finally:
        os.close(lock)

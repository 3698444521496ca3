"""Loopback ports for the embedded engines.

A port that is taken is an error that names it and the remedy, never an engine that fails later.
"""

from __future__ import annotations

import socket

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

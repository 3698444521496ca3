"""Redis in the simulation: `FakeRedis` behind connections that wait in virtual time, break, and lose what was answered.

Guarantees: a MULTI is executed whole or not at all; a connection made before the server was restarted is broken.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import redis
from attrs import define
from contract.fake_redis import FakeClient, FakeConnection, FakeRedis, Stream
from simulation.kernel import Kernel, describe

from replicator.source import RedisSource, SourceOptions


class RedisFault(StrEnum):
    """What a command meets."""

    RESET = "reset"
    """The connection breaks before the command arrives."""
    LOST = "lost"
    """The command is done, its answer never comes."""


@define(kw_only=True)
class SimRedis(FakeRedis):
    """The server. ``faulty`` is asked before each packet of commands that the product sends."""

    kernel: Kernel
    faulty: Callable[[], RedisFault | None] = lambda: None
    started: int = 0
    """How often; connections of an earlier life are broken."""
    promoted: bool = False
    lag_seconds: float = 0.0
    """How far its wall clock is behind."""
    changed: int = 0

    def sim_source(self) -> RedisSource:
        source = RedisSource(SourceOptions(url="redis://127.0.0.1:1", pipeline="main"))
        source._client = SimClient(self)  # type: ignore[assignment]
        return source

    def restart(self, keys: dict[bytes, Any] | None = None) -> None:
        """Every connection breaks; with ``keys`` it comes back as an older copy of itself."""
        self.started += 1
        self.up = True
        if keys is not None:
            self.put_back(keys)

    def stream(self, name: str) -> Stream | None:
        found = self.keys.get(name.encode())
        return found if isinstance(found, Stream) else None

    def add(self, stream: str, entry_id: str, fields: Sequence[bytes]) -> str:
        """What a producer adds; it has a connection of its own, that never fails."""
        self.changed += 1
        return self._xadd(stream.encode(), entry_id.encode(), *fields).decode()

    def dump(self) -> dict[bytes, Any]:
        return copy.deepcopy(self.keys)

    def packet(self, send: Callable[[], Any], life: int, about: str) -> Any:
        """Carry out one packet of a connection made in that life of the server."""
        self.kernel.step(f"redis {about}")
        fault = self.faulty() if self.kernel.current and self.kernel.current.process else None
        if fault is not None:
            self.kernel.note(f"redis {fault} at {about}")
        if fault is RedisFault.RESET or life != self.started or not self.up:
            raise redis.ConnectionError("Connection reset by peer" if self.up else "Connection refused")
        answer = send()
        self.kernel.step(f"redis {about} answered")
        if fault is RedisFault.LOST or life != self.started:
            raise redis.ConnectionError("Connection reset by peer")
        return answer


class SimConnection(FakeConnection):
    server: SimRedis

    def __init__(self, server: SimRedis) -> None:
        super().__init__(server)
        self.life = server.started

    def send_packed_command(self, commands: list[tuple[Any, ...]], check_health: bool = True) -> None:
        inner = [command for command in commands if command[0] not in ("MULTI", "EXEC")]
        about = f"MULTI {inner[0][0]} …" if inner else "MULTI"
        answers = self.server.packet(lambda: [self.server.run(*c) for c in inner], self.life, about)
        self.replies += [b"OK", *([b"QUEUED"] * len(inner)), answers]

    def send_command(self, *command: Any, check_health: bool = True) -> None:
        words = list(command)
        if "BLOCK" in words:
            at = words.index("BLOCK")
            seconds, words = int(words[at + 1]) / 1000, words[:at] + words[at + 2 :]
            self._await_entries(words, seconds)
        self.replies.append(self.server.packet(lambda: self.server.run(*words), self.life, str(words[0])))

    def _await_entries(self, command: list[Any], seconds: float) -> None:
        """What a blocked XREAD does. It never notices a stream that begins anew with lower ids."""
        server, looked = self.server, -1

        def over() -> bool:
            nonlocal looked
            if self.life != server.started or not server.up:
                return True
            before, looked = looked, server.changed
            return before != looked and server.run(*command) is not None

        server.kernel.wait(over, seconds)


class SimClient(FakeClient):
    server: SimRedis

    def get_connection(self) -> SimConnection:
        if not self.server.up:
            raise redis.ConnectionError("Connection refused")
        return SimConnection(self.server)

    def execute_command(self, *command: Any) -> Any:
        reply = self.server.packet(lambda: self.server.run(*command), self.server.started, describe(command[0]))
        if isinstance(reply, redis.ResponseError):
            raise reply
        return reply

    def info(self, section: str = "") -> dict[str, Any]:
        return {"redis_version": "7.4.0", "master_replid2": ("1" if self.server.promoted else "0") * 40}

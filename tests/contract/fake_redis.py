"""A Redis in memory that `RedisSource` itself speaks to, for the simulation: streams, groups, keys, MULTI, faults.

It stands in for redis-py's client and connections, below our own code; `tests/contract` runs one suite on it and on a
real server. It counts what was added as Redis 7 does, keeps what `kill` would keep, and can be copied and put back.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import redis
from attrs import define, field

from replicator.model import entry_order
from replicator.source import RedisSource, SourceOptions

Id = tuple[int, int]


def order(raw: Any) -> Id:
    return entry_order(raw.decode() if isinstance(raw, bytes) else str(raw))


def text(entry_id: Id) -> bytes:
    return b"%d-%d" % entry_id


@define
class Stream:
    entries: dict[Id, list[bytes]] = field(factory=dict)
    last: Id = (0, 0)
    added: int = 0
    deleted: Id = (0, 0)
    groups: dict[bytes, tuple[Id, int | None]] = field(factory=dict)


@define
class FakeRedis:
    """The server. ``meet`` is asked before each command; what it raises, the client meets."""

    clock: Callable[[], float] = time.monotonic
    meet: Callable[[str], None] = lambda command: None
    keys: dict[bytes, Any] = field(factory=dict)
    expiry: dict[bytes, float] = field(factory=dict)
    up: bool = True

    def source(self, pipeline: str = "main") -> RedisSource:
        """Our own source, with this in the place of redis-py."""
        source = RedisSource(SourceOptions(url="redis://127.0.0.1:1", pipeline=pipeline))
        source._client = FakeClient(self)  # type: ignore[assignment]
        return source

    def kill(self) -> None:
        self.up = False

    def start(self) -> None:
        self.up = True

    def copy(self) -> dict[bytes, Any]:
        """What a dump would hold; `put_back` restores it."""
        return copy.deepcopy(self.keys)

    def put_back(self, keys: dict[bytes, Any]) -> None:
        self.keys = copy.deepcopy(keys)

    # ── commands ──

    def run(self, *command: Any) -> Any:
        """One command's reply in RESP2, an error as a ResponseError."""
        words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
        name = words[0].decode().lower()
        if not self.up:
            raise redis.ConnectionError("Connection refused")
        self.meet(name)
        self._expire()
        try:
            return getattr(self, f"_{name}")(*words[1:])
        except redis.ResponseError as error:
            return error

    def _expire(self) -> None:
        for key in [key for key, at in self.expiry.items() if at <= self.clock()]:
            self.keys.pop(key, None)
            del self.expiry[key]

    def _stream(self, key: bytes) -> Stream:
        found = self.keys.get(key)
        if found is None:
            raise redis.ResponseError("ERR no such key")
        if not isinstance(found, Stream):
            raise redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return found

    def _xadd(self, key: bytes, entry_id: bytes, *parts: bytes) -> bytes:
        stream = self.keys.setdefault(key, Stream())
        stream = self._stream(key)
        new = (int(self.clock() * 1000), 0) if entry_id == b"*" else order(entry_id)
        if new <= stream.last:
            if entry_id != b"*":
                raise redis.ResponseError("ERR The ID specified in XADD is equal or smaller than the target")
            new = (stream.last[0], stream.last[1] + 1)
        stream.entries[new] = list(parts)
        stream.last, stream.added = new, stream.added + 1
        return text(new)

    def _xdel(self, key: bytes, *ids: bytes) -> int:
        stream = self._stream(key)
        gone = [order(each) for each in ids if stream.entries.pop(order(each), None) is not None]
        stream.deleted = max([stream.deleted, *gone])
        return len(gone)

    def _xtrim(self, key: bytes, *words: bytes) -> int:
        stream = self._stream(key)
        gone = list(stream.entries)[: max(0, len(stream.entries) - int(words[-1]))]
        for each in gone:
            del stream.entries[each]
        return len(gone)

    def _xlen(self, key: bytes) -> int:
        return len(self._stream(key).entries) if key in self.keys else 0

    def _xread(self, *words: bytes) -> Any:
        at = [word.upper() for word in words].index(b"STREAMS")
        options = dict(zip(words[:at:2], words[1:at:2], strict=True))
        count, rest = int(options.get(b"COUNT", b"0")) or None, words[at + 1 :]
        names, starts = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        reply = []
        for name, start in zip(names, starts, strict=True):
            if name not in self.keys:
                continue
            behind = [each for each in self._stream(name).entries if each > order(start)][:count]
            if behind:
                reply.append([name, [[text(each), self.keys[name].entries[each]] for each in behind]])
        return reply or None

    def _xinfo(self, what: bytes, key: bytes) -> Any:
        stream = self._stream(key)
        if what.upper() == b"GROUPS":
            return [
                [b"name", name, b"consumers", 0, b"pending", 0, b"last-delivered-id", text(at), b"entries-read", read]
                for name, (at, read) in stream.groups.items()
            ]
        first = next(iter(stream.entries), None)
        return [
            b"length", len(stream.entries), b"last-generated-id", text(stream.last),
            b"max-deleted-entry-id", text(stream.deleted), b"entries-added", stream.added, b"groups", len(stream.groups),
            b"first-entry", None if first is None else [text(first), stream.entries[first]],
        ]  # fmt: skip

    def _xgroup(self, what: bytes, key: bytes, group: bytes, at: bytes, *rest: bytes) -> bytes:
        if key not in self.keys:
            raise redis.ResponseError("ERR The XGROUP subcommand requires the key to exist.")
        stream, creating = self._stream(key), what.upper() == b"CREATE"
        if creating and group in stream.groups:
            raise redis.ResponseError("BUSYGROUP Consumer Group name already exists")
        if not creating and group not in stream.groups:
            raise redis.ResponseError(f"NOGROUP No such consumer group '{group.decode()}' for key name")
        read = int(rest[1]) if rest else None
        stream.groups[group] = (order(at), None if read is None or read < 0 else read)
        return b"OK"

    def _get(self, key: bytes) -> Any:
        return self.keys.get(key)

    def _set(self, key: bytes, value: bytes, *rest: bytes) -> bytes:
        self.keys[key] = value
        self.expiry.pop(key, None)
        if rest:
            self.expiry[key] = self.clock() + int(rest[1]) / 1000
        return b"OK"

    def _del(self, *keys: bytes) -> int:
        return sum(self.keys.pop(key, None) is not None for key in keys)

    def _pttl(self, key: bytes) -> int:
        left = self.expiry.get(key)
        return -2 if key not in self.keys else -1 if left is None else int((left - self.clock()) * 1000)

    def _flushall(self) -> bytes:
        self.keys.clear()
        self.expiry.clear()
        return b"OK"


@define
class FakeConnection:
    """What a connection of redis-py is to `RedisSource`."""

    server: FakeRedis
    replies: list[Any] = field(factory=list)

    def pack_commands(self, commands: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return list(commands)

    def send_packed_command(self, commands: list[tuple[Any, ...]], check_health: bool = True) -> None:
        """A MULTI: acknowledged line by line, answered as one."""
        inner = [command for command in commands if command[0] not in ("MULTI", "EXEC")]
        self.replies += [b"OK", *([b"QUEUED"] * len(inner)), [self.server.run(*command) for command in inner]]

    def send_command(self, *command: Any, check_health: bool = True) -> None:
        self.replies.append(self.server.run(*command))

    def read_response(self, disable_decoding: bool = False, timeout: float | None = None) -> Any:
        reply = self.replies.pop(0)
        if isinstance(reply, redis.ResponseError):
            raise reply
        return reply

    def disconnect(self) -> None:
        self.replies.clear()


@define
class FakeClient:
    """What redis-py's client is to `RedisSource`, and to a test that adds and deletes."""

    server: FakeRedis

    @property
    def connection_pool(self) -> Self:
        return self

    def get_connection(self) -> FakeConnection:
        return FakeConnection(self.server)

    def release(self, connection: FakeConnection) -> None: ...

    def close(self) -> None: ...

    def execute_command(self, *command: Any) -> Any:
        reply = self.server.run(*command)
        if isinstance(reply, redis.ResponseError):
            raise reply
        return reply

    def get(self, key: str) -> Any:
        return self.execute_command("GET", key)

    def pttl(self, key: str) -> int:
        return int(self.execute_command("PTTL", key))

    def info(self, section: str = "") -> dict[str, Any]:
        return {"redis_version": "7.4.0", "master_replid2": "0" * 40}

    @contextmanager
    def pipeline(self) -> Iterator[FakePipeline]:
        yield FakePipeline(self)


@define
class FakePipeline:
    """WATCH, and what follows it: nobody is between, so it always succeeds."""

    client: FakeClient

    def watch(self, key: str) -> None: ...

    def multi(self) -> None: ...

    def execute(self) -> None: ...

    def get(self, key: str) -> Any:
        return self.client.get(key)

    def set(self, key: str, value: bytes, px: int | None = None) -> None:
        self.client.execute_command("SET", key, value, *(("PX", px) if px else ()))

    def delete(self, key: str) -> None:
        self.client.execute_command("DEL", key)

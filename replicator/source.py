"""Redis streams: read entries from a position, publish how far they are logged, describe a stream.

Guarantees: reads start exactly behind the position given; a reply is read whole or the connection is dropped; nothing is
published over a group that was rolled back; errors leave as ours. Never acknowledges, trims or deletes by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from attrs import define, evolve, field, frozen

from replicator.collector import collector_paused
from replicator.decode import StreamRead
from replicator.errors import ReplicatorError, SourceRefused, SourceTurned, SourceUnavailable
from replicator.model import EntryId, StreamPosition
from replicator.redis_replies import (
    description,
    entries_passed,
    group_entry_id,
    refuse_other_types,
    sampled_bytes,
    stands_between,
    stream_read,
    stream_reads,
    without_password,
)
from replicator.resp import expect_entries
from replicator.witness import Checked, Sighting, StreamDescription, is_untouched

REPLY_BYTES_TARGET = 8 << 20
ENTRIES_MAX = 5120
"""Entries in one XREAD: 500–5000 is where Redis delivers most; 24 such replies make one DuckDB row group."""
SOCKET_READ_BYTES = 1 << 18
ENTRIES_FIRST = 64
"""Entries asked for before anything is known of their size."""


@frozen(kw_only=True)
class SourceOptions:
    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    pipeline: str = "main"
    timeout_seconds: float = 5.0


@define
class RedisSource:
    """One connection for reading, one for publishing, a pool for everything else.

    The reading side belongs to one thread, the publishing side to another. ``published`` is what Redis is known to
    have witnessed: the epoch and entry id of each stream.
    """

    options: SourceOptions
    published: dict[str, tuple[int, EntryId]] = field(factory=dict, init=False)
    _client: redis.Redis = field(init=False)
    _reader: Any = field(default=None, init=False)
    _publisher: Any = field(default=None, init=False)
    _counts: bool = field(default=True, init=False)
    """Whether the server counts what was added to a stream (Redis 7.0); learnt by asking."""
    _count: int = field(default=ENTRIES_FIRST, init=False)

    def __attrs_post_init__(self) -> None:
        o = self.options
        credentials = {k: v for k, v in (("username", o.username), ("password", o.password)) if v}
        try:
            self._client = redis.Redis.from_url(
                o.url,
                protocol=2,
                socket_timeout=o.timeout_seconds,
                socket_connect_timeout=o.timeout_seconds,
                socket_keepalive=True,
                socket_read_size=SOCKET_READ_BYTES,
                retry=None,
                **credentials,
            )
        except ValueError as error:
            raise SourceRefused(
                f"redis url: {error}", hint="set [redis] url or REDIS_URL, as redis://host:6379"
            ) from error

    @property
    def group(self) -> str:
        """The consumer group that shows Redis tools how far this pipeline is. It never holds pending entries."""
        return f"replicator:{self.options.pipeline}"

    # ── reading ──

    def read(self, positions: Mapping[str, StreamPosition], *, block_seconds: float) -> tuple[list[StreamRead], bool]:
        """Entries behind each position, waiting up to ``block_seconds`` for the first.

        Returns the reads, one per stream that had entries, and whether more is likely to wait (a reply was full).
        """
        count, block = self._count, max(1, int(block_seconds * 1000))
        starts = {name: position.behind for name, position in positions.items()}
        try:
            with self._translated(), collector_paused():
                connection = self._reading_connection()
                expect_entries(connection)
                connection.send_command(
                    "XREAD", "COUNT", count, "BLOCK", block, "STREAMS", *starts, *starts.values(), check_health=False
                )
                patience = block_seconds + self.options.timeout_seconds
                reply = connection.read_response(disable_decoding=True, timeout=patience)
        except BaseException:
            self.disconnect()
            raise
        reads = stream_reads(positions, reply)
        full = any(len(read.ids) >= count for read in reads)
        self._adapt_count(reads)
        return reads, full

    def check(self, positions: Mapping[str, StreamPosition]) -> Checked:
        """A checked look: one MULTI of what Redis says of the streams and of the entries behind each position.

        The first act on a new connection. Never waits for entries. Our group is put on a stream before anything is
        read from it: one that is made anew later has none. Raises SourceRefused for a key of another type.
        """
        count, names = self._count, list(positions)
        asked = [command for s in names for command in (("XINFO", "STREAM", s), ("XINFO", "GROUPS", s))]
        read = ("XREAD", "COUNT", count, "STREAMS", *names, *(positions[s].behind for s in names))
        new = [p for p in positions.values() if is_untouched(p, self._witnessed(p))]
        asked = [*(("XGROUP", "CREATE", p.stream, self.group, p.behind) for p in new), *asked]
        try:
            with self._translated(), collector_paused():
                replies = _exchange(self._reading_connection(), [*asked, ("GET", f"{self.group}:head"), read])
                made = {p.stream for p in new if not isinstance(replies.pop(0), redis.ResponseError)}
                refuse_other_types(names, replies)
                entries = {name.decode(): found for name, found in _answered(replies[-1]) or ()}
        except BaseException:
            self.disconnect()
            raise
        reads = [stream_read(positions, name, found) for name, found in entries.items()]
        sightings = {}
        for place, (name, position) in enumerate(positions.items()):
            about = description(replies[2 * place], replies[2 * place + 1], self.group)
            self._counts = self._counts if not about.exists else about.entries_added is not None
            if position in new and about.group_entry_id == position.behind:
                self.published[name] = (position.stream_epoch, position.behind)
            about = about if name not in made else evolve(about, group_entry_id=None)
            sightings[name] = Sighting(
                position=position,
                about=about,
                entries=len(entries.get(name, ())),
                at_tail=len(entries.get(name, ())) < count,
                published=position.published_entry_id,
                head_witnessed=replies[-2] is not None,
            )
        self._adapt_count(reads)
        return Checked(reads=reads, full=not all(s.at_tail for s in sightings.values()), sightings=sightings)

    def _reading_connection(self) -> Any:
        if self._reader is None:
            self._reader = self._client.connection_pool.get_connection()
        return self._reader

    def _adapt_count(self, reads: Sequence[StreamRead]) -> None:
        """Ask for as many entries as make about eight megabytes."""
        entries = sum(len(read.ids) for read in reads)
        if entries:
            size = max(1, sum(sampled_bytes(read) for read in reads) // entries)
            self._count = max(1, min(ENTRIES_MAX, self._count * 8, REPLY_BYTES_TARGET // size))

    def disconnect(self) -> None:
        """Drop the reading connection: an answer that was not read whole must never be taken for another's."""
        if self._reader is not None:
            self._reader.disconnect()
            self._client.connection_pool.release(self._reader)
            self._reader = None

    def begin(self) -> None:
        """A new run: the connections of earlier ones vouch for nothing. Call while no other thread uses them."""
        self.disconnect()
        self._drop_publisher()

    def close(self) -> None:
        self.disconnect()
        self._client.close()

    # ── publishing and asking ──

    def publish(self, positions: Sequence[StreamPosition], *, timeline: int, head: int) -> None:
        """Let Redis witness what the log holds: the group's position per stream, and the head, in one MULTI.

        Raises SourceUnavailable when Redis did not answer; whether it has the news is then unknown. Raises
        SourceTurned, and leaves the group as it was, where that stood behind what was published before.
        """
        expected = [self._witnessed(p) for p in positions]
        commands = [c for p in positions for c in (("XINFO", "GROUPS", p.stream), self._set_group(p))]
        head_key = f"{self.group}:head"
        witness = [("GET", head_key), ("SET", head_key, f"{timeline}:{head}")]
        try:
            with self._translated():
                if self._publisher is None:
                    self._publisher = self._client.connection_pool.get_connection()
                    groups = _exchange(self._publisher, [("XINFO", "GROUPS", p.stream) for p in positions])
                    self._refuse_turned(positions, expected, groups, ())
                replies = _exchange(self._publisher, [*commands, *witness])
                undo = ("DEL", head_key) if replies[-2] is None else ("SET", head_key, replies[-2])
                self._refuse_turned(positions, expected, replies[:-2:2], [undo])
                for p, reply in zip(positions, replies[1:-2:2], strict=True):
                    if not isinstance(reply, redis.ResponseError):
                        self.published[p.stream] = (p.stream_epoch, p.behind)
                    else:
                        self._create_group(p)
        except BaseException:
            self._drop_publisher()
            raise

    def _witnessed(self, position: StreamPosition) -> EntryId | None:
        epoch, entry_id = self.published.get(position.stream, (0, None))
        return entry_id if epoch == position.stream_epoch else position.published_entry_id

    def _set_group(self, position: StreamPosition, entry_id: EntryId | None = None) -> tuple[Any, ...]:
        """The command; ENTRIESREAD keeps the lag true in Redis's own tools, -1 says that it is unknown."""
        command = ("XGROUP", "SETID", position.stream, self.group, entry_id or position.behind)
        return (*command, "ENTRIESREAD", entries_passed(position)) if self._counts else command

    def _refuse_turned(
        self,
        positions: Sequence[StreamPosition],
        expected: Sequence[EntryId | None],
        groups: Sequence[Any],
        undo: Sequence[tuple[Any, ...]],
    ) -> None:
        """A group gone, behind or beyond what was published: the only trace of a rollback or another process. It is left."""
        stand = [group_entry_id(reply, self.group) for reply in groups]
        turned = [
            (p, at)
            for p, published, at in zip(positions, expected, stand, strict=True)
            if published is not None and (at is None or not stands_between(published, at, p.behind))
        ]
        if turned:
            _exchange(self._publisher, [*undo, *(self._set_group(p, at) for p, at in turned if at is not None)])
            streams = ", ".join(f"{p.stream!r} ({at or 'gone'})" for p, at in turned)
            raise SourceTurned(f"our group does not stand where it was left on {streams}")

    def _create_group(self, position: StreamPosition) -> None:
        """A stream that does not exist yet is waited for; one that has come meanwhile may have our group."""
        command = ("XGROUP", "CREATE", position.stream, self.group, position.behind)
        counted = ("ENTRIESREAD", entries_passed(position)) if self._counts else ()
        made, found = _exchange(self._publisher, [(*command, *counted), ("XINFO", "GROUPS", position.stream)])
        if "requires the key" in str(made):
            return
        if "BUSYGROUP" in str(made):
            self._refuse_turned([position], [position.behind], [found], ())
        else:
            _answered(made)
        self.published[position.stream] = (position.stream_epoch, position.behind)

    def _drop_publisher(self) -> None:
        if self._publisher is not None:
            self._publisher.disconnect()
            self._client.connection_pool.release(self._publisher)
            self._publisher = None

    # ── the two keys of an owner ──

    def swap(self, key: str, expected: bytes | None, new: bytes | None, seconds: float | None = None) -> bytes | None:
        """Set ``key`` to ``new`` (None: delete it) where it holds ``expected``; returns what it held. One step."""
        lifetime = None if seconds is None else int(seconds * 1000)
        with self._translated(), self._client.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(key)
                    held: bytes | None = pipe.get(key)
                    if held != expected:
                        return held
                    pipe.multi()
                    if new is None:
                        pipe.delete(key)
                    else:
                        pipe.set(key, new, px=lifetime)
                    pipe.execute()
                    return held
                except redis.WatchError:
                    continue

    def seconds_left(self, key: str) -> float:
        """How long a key has to live; 0 when it is not there."""
        with self._translated():
            return max(0.0, self._client.pttl(key) / 1000)

    def promoted(self) -> bool:
        """Whether this server was a replica once and took over; False where it may not be asked."""
        with self._translated():
            try:
                about = self._client.info("replication")
            except redis.ResponseError:
                return False
        return str(about.get("master_replid2", "0")).strip("0") != ""

    def published_head(self) -> tuple[int, int] | None:
        """The (timeline, head offset) last published, None when Redis knows of none."""
        timeline, _, head = self.kept(f"{self.group}:head").partition(":")
        return (int(timeline), int(head)) if timeline else None

    def kept(self, key: str) -> str:
        """What a key holds, empty when it is not there."""
        with self._translated():
            value = self._client.get(key)
        return value.decode(errors="replace") if isinstance(value, bytes) else ""

    def describe(self, stream: str) -> StreamDescription:
        """What Redis says of one stream and of our group on it."""
        with self._translated():
            connection = self._client.connection_pool.get_connection()
            try:
                replies = _exchange(connection, [("XINFO", "STREAM", stream), ("XINFO", "GROUPS", stream)])
            except BaseException:
                connection.disconnect()
                raise
            finally:
                self._client.connection_pool.release(connection)
        refuse_other_types([stream], replies)
        return description(*replies, self.group)

    def sample(self, stream: str, count: int) -> StreamRead:
        """Some of the oldest and some of the newest entries of a stream, ``count`` at most, in their order."""
        with self._translated():
            connection = self._client.connection_pool.get_connection()
            try:
                half = (count + 1) // 2
                first = ("XRANGE", stream, "-", "+", "COUNT", half)
                last = ("XREVRANGE", stream, "+", "-", "COUNT", count - half)
                oldest, newest = _exchange(connection, [first, last])
            finally:
                self._client.connection_pool.release(connection)
            refuse_other_types([stream], [oldest])
            entries = dict([*_answered(oldest), *reversed(_answered(newest))])
        return StreamRead(stream=stream, stream_epoch=1, ids=list(entries), fields=list(entries.values()))

    def run_script(self, script: str, key: str, *arguments: str | int) -> Any:
        """Run a Lua script on one key, in one step for everybody else."""
        with self._translated():
            return self._client.eval(script, 1, key, *arguments)

    def ping(self) -> dict[str, Any]:
        """The server's own description (INFO), to show that it is Redis and which."""
        with self._translated():
            return dict(self._client.info())

    def settings(self, *names: str) -> dict[str, str]:
        """Server settings by name; empty where CONFIG is not permitted."""
        with self._translated():
            try:
                return {k: v for name in names for k, v in self._client.config_get(name).items()}
            except redis.ResponseError:
                return {}

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The one place where redis-py's errors become ours."""
        try:
            yield
        except (redis.RedisError, OSError, ValueError) as error:
            raise _translate(error, self.options.url) from error


def _exchange(connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run commands as one MULTI. Returns their replies, a refusal among them as a ResponseError."""
    connection.send_packed_command(connection.pack_commands([("MULTI",), *commands, ("EXEC",)]), check_health=False)
    for _ in range(len(commands) + 1):
        connection.read_response(disable_decoding=True)
    return list(connection.read_response(disable_decoding=True))


def _answered(reply: Any) -> Any:
    if isinstance(reply, redis.ResponseError):
        raise reply
    return reply


def _translate(error: Exception, url: str) -> ReplicatorError:
    text = str(error) or type(error).__name__
    where = without_password(url)
    if (
        isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError)
        or "NOAUTH" in text
        or "WRONGPASS" in text
    ):
        return SourceRefused(
            f"Redis at {where} refuses the login: {text}", hint="set [redis] username and password in secrets.toml"
        )
    if isinstance(error, redis.exceptions.NoPermissionError) or "NOPERM" in text:
        return SourceRefused(
            f"Redis at {where} forbids a command: {text}", hint="`replicator check` prints the ACL to give"
        )
    if "WRONGTYPE" in text:
        return SourceTurned(f"Redis at {where}: {text}")  # the next checked look names the key
    if isinstance(error, redis.InvalidResponse | ValueError) or "Protocol error" in text:
        return SourceUnavailable(
            f"what answers at {where} does not speak Redis: {text[:200]}", hint="check [redis] url"
        )
    return SourceUnavailable(f"Redis at {where} does not answer: {text[:300]}", hint="start it, or check [redis] url")

"""Redis streams: read entries from a position, publish how far they are logged, describe a stream.

Guarantees: reads start exactly behind the position given; a reply is read whole or the connection is dropped;
every error of redis-py leaves here as one of ours. Never acknowledges, trims or deletes an entry by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from attrs import define, field, frozen

from replicator.changelog import StreamPosition
from replicator.collector import collector_paused
from replicator.decode import StreamRead
from replicator.errors import ReplicatorError, SourceRefused, SourceUnavailable
from replicator.model import NO_ENTRY, EntryId, entry_order

REPLY_BYTES_TARGET = 8 << 20
ENTRIES_MAX = 5120
"""Entries in one XREAD: 500–5000 is where Redis delivers most; 24 such replies make one DuckDB row group."""
ENTRIES_FIRST = 64
"""Entries asked for before anything is known of their size."""


@frozen(kw_only=True)
class SourceOptions:
    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    pipeline: str = "main"
    timeout_seconds: float = 5.0


@frozen(kw_only=True)
class StreamDescription:
    """What Redis says of a stream. Figures that the server is too old to know are None."""

    exists: bool
    length: int = 0
    last_entry_id: EntryId = NO_ENTRY
    first_entry_id: EntryId | None = None
    entries_added: int | None = None
    group_entry_id: EntryId | None = None
    group_entries_read: int | None = None


@define
class RedisSource:
    """One connection for reading, one pool for everything else. The reading side belongs to one thread."""

    options: SourceOptions
    _client: redis.Redis = field(init=False)
    _reader: Any = field(default=None, init=False)
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
        starts = {name: read_from(position) for name, position in positions.items()}
        try:
            with self._translated(), collector_paused():
                connection = self._reading_connection()
                connection.send_command(
                    "XREAD", "COUNT", count, "BLOCK", block, "STREAMS", *starts, *starts.values(), check_health=False
                )
                patience = block_seconds + self.options.timeout_seconds
                reply = connection.read_response(disable_decoding=True, timeout=patience)
        except BaseException:
            self.disconnect()
            raise
        reads = [_stream_read(positions, name.decode(), entries) for name, entries in reply or ()]
        full = any(len(read.ids) >= count for read in reads)
        self._adapt_count(reads)
        return reads, full

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

    def close(self) -> None:
        self.disconnect()
        self._client.close()

    # ── publishing and asking ──

    def publish(self, positions: Sequence[StreamPosition], *, timeline: int, head: int) -> None:
        """Let Redis witness what the log holds: the group's position per stream, and the head, in one MULTI.

        Raises SourceUnavailable when Redis did not answer; whether it has the news is then unknown.
        """
        with self._translated():
            pipe = self._client.pipeline(transaction=True)
            for p in positions:
                pipe.execute_command(
                    "XGROUP", "SETID", p.stream, self.group, p.last_entry_id, "ENTRIESREAD", p.entries_read
                )
            pipe.set(f"{self.group}:head", f"{timeline}:{head}")
            results = pipe.execute(raise_on_error=False)
            missing = [
                p for p, result in zip(positions, results, strict=False) if isinstance(result, redis.ResponseError)
            ]
            for p in missing:
                self._create_group(p)

    def _create_group(self, position: StreamPosition) -> None:
        try:
            self._client.execute_command(
                "XGROUP",
                "CREATE",
                position.stream,
                self.group,
                position.last_entry_id,
                "ENTRIESREAD",
                position.entries_read,
            )
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error) and "requires the key" not in str(error):
                raise

    def published_head(self) -> tuple[int, int] | None:
        """The (timeline, head offset) last published, None when Redis knows of none."""
        with self._translated():
            value = self._client.get(f"{self.group}:head")
        if not isinstance(value, bytes):
            return None
        timeline, _, head = value.decode().partition(":")
        return int(timeline), int(head)

    def describe(self, stream: str) -> StreamDescription:
        """What Redis says of one stream and of our group on it."""
        with self._translated():
            try:
                about = self._client.xinfo_stream(stream)
                groups = self._client.xinfo_groups(stream)
            except redis.ResponseError as error:
                if "no such key" in str(error).lower():
                    return StreamDescription(exists=False)
                raise
        ours = next((g for g in groups if g["name"] == self.group.encode()), None)
        first = about.get("first-entry")
        return StreamDescription(
            exists=True,
            length=about["length"],
            last_entry_id=EntryId(about["last-generated-id"].decode()),
            first_entry_id=EntryId(first[0].decode()) if first else None,
            entries_added=about.get("entries-added"),
            group_entry_id=EntryId(ours["last-delivered-id"].decode()) if ours else None,
            group_entries_read=ours.get("entries-read") if ours else None,
        )

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


def read_from(position: StreamPosition) -> str:
    """The id to give to XREAD: the position's, or the one before it where its entry is logged in part."""
    if position.last_entry_row is None:
        return position.last_entry_id
    milliseconds, sequence = entry_order(position.last_entry_id)
    if sequence:
        return f"{milliseconds}-{sequence - 1}"
    return f"{milliseconds - 1}-{(1 << 64) - 1}" if milliseconds else NO_ENTRY


def _stream_read(positions: Mapping[str, StreamPosition], stream: str, entries: Sequence[Any]) -> StreamRead:
    position = positions[stream]
    ids, fields = zip(*entries, strict=True) if entries else ((), ())
    partly = position.last_entry_row is not None and bool(ids) and ids[0].decode() == position.last_entry_id
    return StreamRead(
        stream=stream,
        stream_epoch=position.stream_epoch,
        ids=ids,
        fields=fields,
        skip_through_row=position.last_entry_row if partly else None,
    )


def sampled_bytes(read: StreamRead) -> int:
    """About how many bytes the entries of a read hold, from every 32nd of them."""
    sample = read.fields[::32]
    return sum(sum(map(len, entry)) for entry in sample if entry) * len(read.fields) // max(1, len(sample))


def _translate(error: Exception, url: str) -> ReplicatorError:
    text = str(error) or type(error).__name__
    where = _without_password(url)
    if (
        isinstance(error, redis.AuthenticationError | redis.AuthorizationError)
        or "NOAUTH" in text
        or "WRONGPASS" in text
    ):
        return SourceRefused(
            f"Redis at {where} refuses the login: {text}", hint="set [redis] username and password in secrets.toml"
        )
    if isinstance(error, redis.NoPermissionError) or "NOPERM" in text:
        return SourceRefused(
            f"Redis at {where} forbids a command: {text}", hint="`replicator check` prints the ACL to give"
        )
    if "WRONGTYPE" in text:
        return SourceRefused(
            f"Redis at {where}: {text}", hint="one of the configured streams is a key of another type: rename it"
        )
    if isinstance(error, redis.InvalidResponse | ValueError) or "Protocol error" in text:
        return SourceUnavailable(
            f"what answers at {where} does not speak Redis: {text[:200]}", hint="check [redis] url"
        )
    return SourceUnavailable(f"Redis at {where} does not answer: {text[:300]}", hint="start it, or check [redis] url")


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"

"""The producer's connection to Redis: packed commands in, entry ids out.

Guarantees: several entries go in one MULTI, all of them or none; a reply that was not read whole ends the connection;
every error of redis-py leaves here as one of ours, without a password. Must never reorder or resend by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from attrs import frozen

from replicator.encode import command
from replicator.errors import ReplicatorError, SourceRefused, SourceUnavailable, UsageError
from replicator.model import EntryId
from replicator.outbox import Parcel

_MULTI, _EXEC = command(b"MULTI"), command(b"EXEC")


@frozen(kw_only=True)
class SentCounts:
    """What is known to be in Redis."""

    entries: int = 0
    rows: int = 0
    bytes: int = 0


class Link:
    """The connection to Redis. ``deliver`` belongs to the sending thread."""

    def __init__(self, url: str, username: str | None, password: str | None, timeout_seconds: float) -> None:
        given = {name: value for name, value in (("username", username), ("password", password)) if value is not None}
        try:
            self._pool = redis.ConnectionPool.from_url(
                url,
                protocol=2,
                socket_timeout=timeout_seconds,
                socket_connect_timeout=timeout_seconds,
                socket_keepalive=True,
                **given,
            )
        except (ValueError, TypeError) as error:
            raise UsageError(f"redis url: {error}", hint="write it as redis://host:6379/0") from error
        self._where = _without_secrets(url)
        self._connection: Any = None
        self.sent = SentCounts()
        self.first_ids: dict[str, EntryId] = {}
        self.last_ids: dict[str, EntryId] = {}

    def deliver(self, parcels: Sequence[Parcel]) -> tuple[Sequence[Parcel], ReplicatorError | None]:
        """Send parcels in one MULTI: all of them, or none."""
        entries = sum(parcel.entries for parcel in parcels)
        packed = b"".join(parcel.commands for parcel in parcels)
        try:
            results = self._exchange(packed, entries)
        except (redis.RedisError, OSError, ValueError) as error:
            self.close()
            raise _translate(error, self._where) from error
        return self._settle(parcels, results)

    def _exchange(self, packed: bytes, entries: int) -> list[Any]:
        """The reply to each XADD: an entry id, or the error."""
        connection = self._connected()
        connection.send_packed_command([_MULTI + packed + _EXEC] if entries > 1 else [packed], check_health=False)
        if entries == 1:
            return [_reply(connection)]
        queued = [_reply(connection) for _ in range(entries + 1)]
        results = _reply(connection)
        if isinstance(results, list):
            return results
        raise next((reply for reply in queued if isinstance(reply, Exception)), results)

    def _connected(self) -> Any:
        if self._connection is None:
            connection = self._pool.get_connection()
            try:
                _ping(connection)
            except BaseException:
                connection.disconnect()
                self._pool.release(connection)
                raise
            self._connection = connection
        return self._connection

    def _settle(
        self, parcels: Sequence[Parcel], results: Sequence[Any]
    ) -> tuple[Sequence[Parcel], ReplicatorError | None]:
        unsent: list[Parcel] = []
        failure = None
        start = 0
        for parcel in parcels:
            replies = results[start : start + parcel.entries]
            start += parcel.entries
            refused = next((reply for reply in replies if isinstance(reply, Exception)), None)
            if refused is None:
                self._count(parcel, replies)
            else:
                failure = failure or _translate(refused, self._where, parcel.stream)
                unsent.append(parcel)
        return unsent, failure

    def _count(self, parcel: Parcel, replies: Sequence[bytes]) -> None:
        sent = self.sent
        self.sent = SentCounts(
            entries=sent.entries + parcel.entries,
            rows=sent.rows + parcel.rows,
            bytes=sent.bytes + len(parcel.commands),
        )
        self.first_ids.setdefault(parcel.stream, EntryId(replies[0].decode()))
        self.last_ids[parcel.stream] = EntryId(replies[-1].decode())

    def check(self) -> None:
        """Connect once, beside the sending thread."""
        try:
            connection = self._pool.get_connection()
            try:
                _ping(connection)
            finally:
                self._pool.release(connection)
        except (redis.RedisError, OSError, ValueError) as error:
            raise _translate(error, self._where) from error

    def close(self) -> None:
        """Drop the connection: a reply that was not read must never be taken for another's."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)
        self._pool.disconnect()


def _ping(connection: Any) -> None:
    connection.send_command("PING", check_health=False)
    if (answer := connection.read_response(disable_decoding=True)) != b"PONG":
        raise redis.InvalidResponse(f"PING was answered with {answer!r}")


def _reply(connection: Any) -> Any:
    """One reply; a refusal of one command is returned, since the replies behind it must be read too."""
    try:
        return connection.read_response(disable_decoding=True)
    except redis.ResponseError as error:
        return error


_TRANSLATIONS: tuple[tuple[str, type[ReplicatorError], str, str], ...] = (
    ("AuthenticationError|AuthenticationWrong|AuthorizationError|NOAUTH|WRONGPASS", SourceRefused, "refuses the login", "set the password"),
    ("NoPermissionError|NOPERM", SourceRefused, "forbids a command", "allow +xadd +multi +exec +ping on these streams"),
    ("WRONGTYPE", SourceRefused, "holds another type under this name", "rename the stream, or that key"),
    ("MovedError|AskError|CrossSlot", SourceRefused, "is a cluster node that does not own this stream", "give the URL of the one that does"),
    ("MISCONF", SourceRefused, "refuses writes", "it cannot save to disk; see its log"),
    ("OutOfMemoryError", SourceUnavailable, "is out of memory", "raise maxmemory, or trim what is replicated"),
    ("ReadOnlyError", SourceUnavailable, "is a read-only replica", "give the URL of the primary"),
    ("BusyLoading|BUSY|ClusterDown|MasterDown|TryAgain|NOREPLICAS", SourceUnavailable, "is not ready", "wait"),
)  # fmt: skip


def _translate(error: Exception, where: str, stream: str = "") -> ReplicatorError:
    """The one place where redis-py's errors become ours."""
    text = str(error) or type(error).__name__
    named = f"{type(error).__name__}: {text}"  # redis-py takes the code off the messages it has a class for
    of = f" (stream {stream})" if stream else ""
    for marks, kind, what, hint in _TRANSLATIONS:
        if any(mark in named for mark in marks.split("|")) and isinstance(error, redis.RedisError):
            return kind(f"Redis at {where} {what}{of}: {text[:200]}", hint=hint)
    if isinstance(error, redis.InvalidResponse | ValueError) or "Protocol error" in text:
        return SourceUnavailable(f"what answers at {where} does not speak Redis: {text[:200]}", hint="check the URL")
    if isinstance(error, redis.ResponseError):
        return SourceRefused(f"Redis at {where} refuses{of}: {text[:200]}", hint="see its message")
    return SourceUnavailable(f"Redis at {where} does not answer: {text[:300]}", hint="start it, or check the URL")


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path if parts.scheme == 'unix' else ''}" or "127.0.0.1:6379"

"""Producer: the library for programs that write changes to Redis streams.

Guarantees: a change that was accepted is sent, in the order of acceptance per stream, or ``flush`` and ``close``
raise and say how many are not; a resend after a lost reply carries the same idempotency key, so that the replicator
drops the copy; several entries go in one MULTI, so that none overtakes one that Redis refused.
Must never change a value, drop a change in silence or print a password.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from attrs import evolve

from replicator import encode
from replicator.canonical import key_text, plain_value, refusal
from replicator.decode_parts import time_microseconds
from replicator.errors import ReplicatorError, UsageError
from replicator.model import EntryId, Op
from replicator.outbox import BufferLimits, Outbox, Parcel
from replicator.producer_link import Link, SentCounts
from replicator.rows import batch_of_rows

_log = logging.getLogger(__name__)
_SLICE_ROWS = 10_000
ENCODINGS = ("json", "flat", "arrow")
COMPRESSIONS = ("zstd", "lz4", None)
ENTRY_BYTES_MAX = 32 << 20
"""A larger entry is refused: Redis, the log and the sink would each hold it whole."""
BATCH_BYTES = 4 << 20
"""About how many bytes, uncompressed, one Arrow entry holds."""
CLOSE_SECONDS = 5.0
"""How long an unclosed producer is waited for when it is collected or the program ends."""

Columns = str | Sequence[str]


class Producer:
    """Writes changes to Redis streams through one bounded buffer and one sending thread. Thread-safe.

    ``stream``: one stream for all tables; by default each table has its own, named after it.
    ``key``: the key columns, of all tables or by table. Where the replicator declares the table it needs none here.
    ``encoding`` of single changes ("arrow" puts one row into an entry); ``send_batch`` writes Arrow. ``maxlen`` trims the stream as it grows: entries
    may then leave Redis before they are replicated. ``idempotency=False`` saves the id of each change and gives up
    the protection against copies.
    """

    def __init__(
        self,
        redis_url: str = "redis://127.0.0.1:6379/0",
        *,
        stream: str | None = None,
        encoding: str = "json",
        key: Columns | Mapping[str, Columns] | None = None,
        maxlen: int | None = None,
        idempotency: bool = True,
        compression: str | None = "zstd",
        schema_tag: str | None = None,
        username: str | None = None,
        password: str | None = None,
        timeout_seconds: float = 10.0,
        limits: BufferLimits | None = None,
    ) -> None:
        _one_of("encoding", encoding, ENCODINGS)
        _one_of("compression", compression, COMPRESSIONS)
        if maxlen is not None and maxlen < 1:
            raise UsageError(f"maxlen={maxlen} keeps no entry", hint="give at least 1, or None to keep all")
        self._stream, self._encoding, self._key, self._maxlen = stream, encoding, key, maxlen
        self._idempotency, self._compression, self._schema_tag = idempotency, compression, schema_tag
        self._link = Link(redis_url, username, password, timeout_seconds)
        self._outbox = Outbox(self._link.deliver, limits or BufferLimits())
        self._end = weakref.finalize(self, _end, self._outbox, self._link)

    # ── single changes ──

    def create(self, table: str, row: Mapping[str, Any], **about: Any) -> str | None:
        """Write a new row; arguments and result as ``upsert``."""
        return self._send(Op.CREATE, table, row, **about)

    def upsert(self, table: str, row: Mapping[str, Any], **about: Any) -> str | None:
        """Write the whole row as it is after the change.

        ``key``: the key, or a tuple of its parts, where no key columns are set. ``event_id``: the idempotency key,
        made when not given. ``at``: when it happened, an aware datetime, epoch milliseconds or ISO 8601.
        ``traceparent``: the W3C trace it belongs to (not in Arrow).
        Returns the idempotency key. Raises UsageError for what cannot be sent; SourceUnavailable or SourceRefused
        when the buffer stays full.
        """
        return self._send(Op.UPDATE, table, row, **about)

    def delete(self, table: str, *key: Any, **about: Any) -> str | None:
        """Delete one key, given by its parts in order or as one mapping of column to value.

        Where the replicator declares the table, it looks for the key columns: set ``key`` or give the mapping.
        """
        named = key[0] if len(key) == 1 and isinstance(key[0], Mapping) else None
        names = self._key_columns(table)
        if named is None and names and len(names) != len(key):
            raise UsageError(
                f"{table}: a key of {len(key)} parts for {len(names)} columns", hint=f"give {', '.join(names)}"
            )
        row = named if named is not None else dict(zip(names, key, strict=True)) if names else {}
        parts = key if named is None else [named.get(name) for name in names or named]
        return self._send(Op.DELETE, table, row, key=tuple(parts), **about)

    def _send(
        self,
        op: Op,
        table: str,
        row: Mapping[str, Any],
        *,
        key: Any = None,
        event_id: str | None = None,
        at: Any = None,
        traceparent: str | None = None,
    ) -> str | None:
        stream = self._stream_of(table)
        if not isinstance(row, Mapping):
            raise refusal(table, row, "is no row", "give a mapping of column to value")
        names = self._key_columns(table)
        if key is None and names:
            key = tuple(row.get(name) for name in names)
        parts = key if isinstance(key, tuple) or key is None else (key,)
        if event_id is None and self._idempotency:
            event_id = new_event_id()
        change = encode.Change(
            where=table,
            op=op,
            row=row,
            key=None
            if parts is None
            else key_text(parts, f"{table} key ({', '.join(names)})" if names else f"{table} key"),
            at=_instant(at, table),
            event_id=None if event_id is None else plain_value(event_id, f"{table} event_id"),
            schema_tag=self._schema_tag,
            table=table if stream != table else None,
            traceparent=traceparent,
        )
        fields = self._fields(change)
        self._accept(stream, encode.pack_entry(self._xadd(stream), fields), 1, 1)
        return event_id

    def _fields(self, change: encode.Change) -> encode.Fields:
        if self._encoding == "json":
            return encode.json_entry(change)
        if self._encoding == "flat":
            return encode.flat_entry(change)
        extra = {"_key": change.key, "_id": change.event_id}
        row = {**change.row, **{name: value for name, value in extra.items() if value is not None}}
        controls = encode.BatchControls(
            where=change.where, op=change.op, at=change.at, schema_tag=change.schema_tag, table=change.table
        )
        batch = encode.arrow_batch(batch_of_rows([row], change.where), controls)
        return encode.arrow_fields(encode.ipc_stream(batch, None), controls)

    # ── many at once ──

    def send_batch(
        self,
        table: str,
        rows: Iterable[Mapping[str, Any]] | pa.Table | pa.RecordBatch,
        *,
        op: str = "u",
        at: Any = None,
        encoding: str = "arrow",
        first_row: int = 0,
    ) -> int:
        """Write many changes of one table; returns how many entries that made.

        Columns named `_op`, `_key`, `_ts` and `_id` say it per row. "arrow" puts up to 100,000 rows into an entry,
        "json" and "flat" write one entry per row. Errors count rows from ``first_row``. Raises as ``upsert``; then
        rows before the error may be accepted.
        """
        _one_of("encoding", encoding, ENCODINGS)
        controls = self._batch_controls(table, op, at, first_row)
        stream = self._stream_of(table)
        entries = 0
        for batch in _batches(rows, table):
            entries += self._send_slices(stream, batch, controls, encoding)
            controls = evolve(controls, first_row=controls.first_row + batch.num_rows)
        return entries

    def send_objects(
        self, table: str, objects: pa.Array, known: pa.RecordBatch, *, op: str = "u", first_row: int = 0
    ) -> int:
        """Write JSON objects as they are, one entry each; ``known`` holds their key columns and `_op` and its like."""
        if len(objects):
            _, given = encode.split_controls(known, self._batch_controls(table, op, None, first_row))
            self.send_columns(self._stream_of(table), {"data": objects, **given}, len(objects))
        return len(objects)

    def _batch_controls(self, table: str, op: str, at: Any, first_row: int) -> encode.BatchControls:
        _one_of("op", op, tuple(Op))
        return encode.BatchControls(
            where=table,
            op=Op(op),
            key_columns=self._key_columns(table),
            at=_instant(at, table),
            id_prefix=new_event_id() if self._idempotency else None,
            schema_tag=self._schema_tag,
            table=table if self._stream_of(table) != table else None,
            first_row=first_row,
        )

    def _send_slices(self, stream: str, batch: pa.RecordBatch, controls: encode.BatchControls, encoding: str) -> int:
        if encoding == "arrow":
            return self._send_arrow(stream, encode.arrow_batch(batch, controls), controls)
        make = encode.json_columns if encoding == "json" else encode.flat_columns
        for start in range(0, batch.num_rows, _SLICE_ROWS):
            part = batch.slice(start, _SLICE_ROWS)
            columns = make(part, evolve(controls, first_row=controls.first_row + start))
            self.send_columns(stream, columns, part.num_rows)
        return batch.num_rows

    def _send_arrow(self, stream: str, batch: pa.RecordBatch, controls: encode.BatchControls) -> int:
        entries = 0
        for part in encode.bounded(batch, BATCH_BYTES):
            blob = encode.ipc_stream(part, self._compression)
            packed = encode.pack_entry(self._xadd(stream), encode.arrow_fields(blob, controls))
            self._accept(stream, packed, 1, part.num_rows)
            entries += 1
        return entries

    def send_columns(self, stream: str, columns: encode.Columns, rows: int) -> None:
        """Write ``rows`` entries whose fields are given as columns: the wire as it is, for those who know it."""
        if not rows:
            return
        packed = encode.pack_columns(self._xadd(stream), columns, rows)
        limits = self._outbox.limits
        for commands, entries in encode.cut(packed, limits.pipeline_entries, limits.pipeline_bytes):
            self._accept(stream, commands, entries, entries)

    # ── the end of it ──

    def flush(self, timeout: float | None = 30.0) -> None:
        """Wait until every change accepted so far is in Redis; raises when it is not, and keeps it for the next."""
        self._outbox.flush(timeout)

    def close(self, timeout: float | None = 30.0) -> None:
        """Flush, then let go of thread and connection; raises when changes were left unsent, which are then lost."""
        try:
            self._outbox.close(timeout)
        finally:
            self._end.detach()
            self._link.close()

    def connect(self) -> None:
        """Raise now, rather than at the first flush, when Redis is not there or refuses."""
        self._link.check()

    @property
    def unsent_rows(self) -> int:
        """Changes accepted and not known to be in Redis."""
        return self._outbox.unsent_rows

    @property
    def sent(self) -> SentCounts:
        """What is known to be in Redis."""
        return self._link.sent

    def last_entry_id(self, stream: str) -> EntryId | None:
        """The newest entry of ours known to be in this stream: what to give as ``min_entry_id`` to read it back."""
        return self._link.last_ids.get(stream)

    def first_entry_id(self, stream: str) -> EntryId | None:
        """The first entry of ours in this stream."""
        return self._link.first_ids.get(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except ReplicatorError as unsent:
            if error is None:
                raise
            error.add_note(f"beside it: {unsent}")

    # ── parts ──

    def _stream_of(self, table: str) -> str:
        if not isinstance(table, str) or not table:
            raise refusal("table", table, "names no table", "give its name as text")
        return self._stream or table

    def _key_columns(self, table: str) -> Sequence[str]:
        key = self._key.get(table) if isinstance(self._key, Mapping) else self._key
        return (key,) if isinstance(key, str) else tuple(key or ())

    def _xadd(self, stream: str) -> list[bytes]:
        trim = [] if self._maxlen is None else [b"MAXLEN", b"~", b"%d" % self._maxlen]
        return [b"XADD", plain_value(stream, "stream").encode(), *trim, b"*"]

    def _accept(self, stream: str, commands: bytes, entries: int, rows: int) -> None:
        if len(commands) > ENTRY_BYTES_MAX and entries == 1:
            raise UsageError(
                f"{stream}: one entry of {len(commands)} bytes, over the {ENTRY_BYTES_MAX} that are accepted",
                hint="split the change, or keep large objects elsewhere and send a reference",
            )
        self._outbox.add(Parcel(stream, commands, entries, rows))


_noise = random.Random()  # noqa: S311 - ids need to be unique, not secret; of our own, so that no program seeds it
os.register_at_fork(after_in_child=_noise.seed)


def new_event_id() -> str:
    """A UUID of version 7: unique, and in the order of making."""
    noise = _noise.getrandbits(74)
    high = (time.time_ns() // 1_000_000) << 16 | 7 << 12 | noise >> 62
    text = f"{high:016x}{2 << 62 | noise & ((1 << 62) - 1):016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _instant(at: Any, table: str) -> str | None:
    """When it happened, as the wire writes it."""
    if at is None:
        return None
    if not isinstance(at, dt.datetime | int | str) or isinstance(at, bool):
        raise refusal(f"{table} at", at, "is no instant", "give an aware datetime, epoch milliseconds or ISO 8601")
    text = plain_value(at, f"{table} at")
    try:
        time_microseconds(text)
    except ValueError as error:
        raise UsageError(f"{table}: {error}", hint="give an aware datetime, epoch milliseconds or ISO 8601") from None
    return text


def _batches(rows: Any, table: str) -> Iterable[pa.RecordBatch]:
    if isinstance(rows, pa.RecordBatch):
        return [rows] if rows.num_rows else []
    if isinstance(rows, pa.Table):
        return [batch for batch in rows.combine_chunks().to_batches() if batch.num_rows]
    listed = list(rows)
    return [
        batch_of_rows(listed[start : start + encode.ENTRY_ROWS_MAX], table)
        for start in range(0, len(listed), encode.ENTRY_ROWS_MAX)
    ]


def _one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        shown = ", ".join(str(each) for each in allowed)
        raise UsageError(f"{name}={value!r} is not known", hint=f"one of {shown}")


def _end(outbox: Outbox, link: Link) -> None:
    """An unclosed producer was collected, or the program ends: send what can be sent, and say what cannot."""
    if threading.current_thread() is outbox.sender:
        threading.Thread(target=_end, args=(outbox, link)).start()
        return
    try:
        outbox.close(CLOSE_SECONDS)
    except ReplicatorError as error:
        _log.error("changes_lost", extra={"error": str(error), "unsent_rows": outbox.unsent_rows})
    finally:
        link.close()

"""Changes to the fields of stream entries, in the three encodings of design §3, one by one or as whole columns.

Guarantees: every value keeps its digits or is refused with its field's name; what goes out, `decode` reads back.
Must never reorder, drop or merge changes; has no I/O and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from attrs import field, frozen

from replicator.canonical import canonical_object, json_objects, key_column, plain_column, plain_value
from replicator.errors import UsageError
from replicator.model import Op

CONTROLS = ("op", "key", "ts", "id", "v", "table", "traceparent")
ROW_CONTROLS = ("_op", "_key", "_ts", "_id")
NO_VALUE = "a row without a value cannot travel in the flat encoding, where null is a field left out"
NO_VALUE_HINT = 'use encoding="json"'
ENTRY_ROWS_MAX = 100_000
"""The most rows that one Arrow entry may hold."""

Fields = Mapping[str, bytes]
Columns = Mapping[str, "pa.Array | bytes"]
"""Entry fields by name; a value is one column, or one bytes for every row. A null leaves the field out."""


@frozen(kw_only=True)
class Change:
    """One change; ``key`` and ``at`` are texts already, and ``table`` is set only on a shared stream."""

    where: str
    op: Op
    row: Mapping[str, Any]
    key: str | None = None
    at: str | None = None
    event_id: str | None = None
    schema_tag: str | None = None
    table: str | None = None
    traceparent: str | None = None


@frozen(kw_only=True)
class BatchControls:
    """What is said of every row of a batch; ``ids`` are made from ``id_prefix`` and the row's number."""

    where: str
    op: Op = Op.UPDATE
    key_columns: Sequence[str] = ()
    at: str | None = None
    id_prefix: str | None = None
    schema_tag: str | None = None
    table: str | None = None
    first_row: int = field(default=0)


def json_entry(change: Change) -> Fields:
    """One change as ``data`` and its controls."""
    return {"data": canonical_object(change.row, change.where), **_controls(change)}


def flat_entry(change: Change) -> Fields:
    """One change as a field per column; a null is a field left out."""
    check_flat_names(change.row, change.where)
    texts = {
        name: plain_value(value, f"{change.where}.{name}").encode()
        for name, value in change.row.items()
        if value is not None
    }
    if not texts and change.op is not Op.DELETE:
        raise UsageError(f"{change.where}: {NO_VALUE}", hint=NO_VALUE_HINT)
    return texts | {f"_{name}": value for name, value in _controls(change).items()}


def _controls(change: Change) -> dict[str, bytes]:
    named = {"op": change.op.value, "key": change.key, "ts": change.at, "id": change.event_id, "v": change.schema_tag}
    named |= {"table": change.table, "traceparent": change.traceparent}
    return {name: value.encode() for name, value in named.items() if value is not None}


def check_flat_names(names: Mapping[str, Any] | Sequence[str], where: str) -> None:
    """Refuse column names that would read as something else in the flat encoding."""
    for name in names:
        if name in ("data", "batch") or (isinstance(name, str) and name[:1] == "_" and name[1:] in CONTROLS):
            raise UsageError(
                f"{where}: a column named {name!r} cannot travel in the flat encoding, where it means something else",
                hint='use encoding="json"',
            )
        if not isinstance(name, str) or not name:
            raise UsageError(f"{where}: {name!r} is no column name", hint="name columns with text")


# ── whole columns, one entry per row ──


def json_columns(batch: pa.RecordBatch, controls: BatchControls) -> Columns:
    """A batch as ``data`` and its controls; `_op` and its like in the batch become controls."""
    own, given = split_controls(batch, controls)
    return {"data": json_objects(own, batch.num_rows), **given}


def flat_columns(batch: pa.RecordBatch, controls: BatchControls) -> Columns:
    """A batch as a field per column."""
    own, given = split_controls(batch, controls)
    check_flat_names(list(own), controls.where)
    texts: dict[str, pa.Array | bytes] = {name: plain_column(column, name) for name, column in own.items()}
    if batch.num_rows and (empty := _empty_rows(list(texts.values()))) is not None:
        raise UsageError(f"{controls.where}: row {empty + controls.first_row}: {NO_VALUE}", hint=NO_VALUE_HINT)
    return texts | {f"_{name}": value for name, value in given.items()}


def _empty_rows(columns: Sequence[pa.Array]) -> int | None:
    """The first row whose columns are all null."""
    if not columns or not all(column.null_count for column in columns):
        return None if columns else 0
    nulls = np.logical_and.reduce([column.is_null().to_numpy(zero_copy_only=False) for column in columns])
    return int(np.argmax(nulls)) if nulls.any() else None


def split_controls(batch: pa.RecordBatch, controls: BatchControls) -> tuple[dict[str, pa.Array], dict[str, Any]]:
    """The batch's own columns, and its controls by name."""
    own = dict(zip(batch.schema.names, batch.columns, strict=True))
    if len(own) != batch.num_columns:
        raise UsageError(f"{controls.where}: a column name stands twice", hint="name each column once")
    given: dict[str, pa.Array | bytes] = {"op": controls.op.value.encode()}
    constant = {"ts": controls.at, "v": controls.schema_tag, "table": controls.table}
    given |= {name: value.encode() for name, value in constant.items() if value is not None}
    if controls.key_columns:
        given["key"] = keys_of(own, controls)
    if controls.id_prefix is not None:
        given["id"] = _ids(batch.num_rows, controls)
    for name in ROW_CONTROLS:
        if name in own:
            given[name[1:]] = plain_column(own.pop(name), name)
    check_ops(given["op"], controls.where)
    return own, given


def keys_of(columns: Mapping[str, pa.Array], controls: BatchControls) -> pa.Array:
    """The key of each row; raises when a key column is missing or null."""
    missing = [name for name in controls.key_columns if name not in columns]
    if missing:
        raise UsageError(
            f"{controls.where}: no key column {missing[0]!r}", hint=f"the columns are {', '.join(columns) or 'none'}"
        )
    keys = key_column(columns, controls.key_columns)
    if keys.null_count:
        row = int(np.flatnonzero(keys.is_null().to_numpy(zero_copy_only=False))[0]) + controls.first_row
        names = ", ".join(controls.key_columns)
        raise UsageError(
            f"{controls.where}: row {row} has no key ({names})", hint="give each row a value in each key column"
        )
    return keys


def check_ops(ops: pa.Array | bytes, where: str) -> None:
    if isinstance(ops, bytes):
        return
    unknown = set(pc.unique(ops).to_pylist()) - {op.value for op in Op} - {None}
    if unknown:
        raise UsageError(
            f"{where}: op {sorted(unknown)[0][:40]!r} is none of c, u, d, r",
            hint="c creates, u updates, d deletes, r is read from a snapshot",
        )


def _ids(rows: int, controls: BatchControls) -> pa.Array:
    numbers = pa.array(np.arange(controls.first_row, controls.first_row + rows)).cast(pa.string())
    return pc.binary_join_element_wise(controls.id_prefix, numbers, "-")


# ── Arrow entries, many rows in each ──


def arrow_fields(blob: bytes, controls: BatchControls) -> Fields:
    """The fields of one Arrow entry."""
    named = {"op": controls.op.value, "ts": controls.at, "v": controls.schema_tag, "table": controls.table}
    return {"batch": blob} | {name: value.encode() for name, value in named.items() if value is not None}


def arrow_batch(batch: pa.RecordBatch, controls: BatchControls) -> pa.RecordBatch:
    """The batch with the columns `_key` and `_id` where they are asked for and not there."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if len(columns) != batch.num_columns:
        raise UsageError(f"{controls.where}: a column name stands twice", hint="name each column once")
    if not set(columns) - set(ROW_CONTROLS):
        raise UsageError(
            f"{controls.where}: the batch has no columns of its own",
            hint="give it at least one; a delete, its key columns",
        )
    if "_op" in columns:
        check_ops(plain_column(columns["_op"], "_op"), controls.where)
    fields = list(batch.schema)
    if controls.key_columns and "_key" not in columns:
        columns["_key"] = keys_of(columns, controls)
        fields.append(pa.field("_key", pa.string()))
    if controls.id_prefix is not None and "_id" not in columns:
        columns["_id"] = _ids(batch.num_rows, controls)
        fields.append(pa.field("_id", pa.string()))
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields))


def ipc_stream(batch: pa.RecordBatch, compression: str | None) -> bytes:
    """One batch as one Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def bounded(batch: pa.RecordBatch, bytes_max: int) -> Iterator[pa.RecordBatch]:
    """The batch in slices of at most ENTRY_ROWS_MAX rows and about ``bytes_max`` bytes; a row is never cut."""
    row_bytes = max(1, batch.nbytes // max(1, batch.num_rows))
    rows = max(1, min(ENTRY_ROWS_MAX, bytes_max // row_bytes))
    for start in range(0, batch.num_rows, rows):
        part = batch.slice(start, rows)
        if part.nbytes > 2 * bytes_max and part.num_rows > 1:
            yield from bounded(part, bytes_max)
        else:
            yield part


# ── packed commands ──


def bulk(value: bytes) -> bytes:
    """A value as Redis's protocol writes it."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def command(*arguments: bytes) -> bytes:
    """A command as Redis's protocol writes it."""
    return b"*%d\r\n%b" % (len(arguments), b"".join(map(bulk, arguments)))


def pack_entry(xadd: Sequence[bytes], fields: Fields) -> bytes:
    """One XADD; ``xadd`` are its arguments up to the ``*``."""
    return command(*xadd, *(part for name, value in fields.items() for part in (name.encode(), value)))


def pack_columns(xadd: Sequence[bytes], columns: Columns, rows: int) -> pa.Array:
    """One XADD per row, as one binary column whose buffer is the commands one behind the other."""
    parts: list[Any] = []
    optional: list[pa.Array] = []
    arguments = len(xadd)
    for name, column in columns.items():
        head = bulk(name.encode())
        arguments += 2
        if isinstance(column, bytes):
            parts.append(_constant(head + bulk(column)))
            continue
        text = column.cast(pa.large_binary())
        lengths = pc.binary_length(text).cast(pa.string()).cast(pa.large_binary())
        piece = pc.binary_join_element_wise(
            _constant(head + b"$"), lengths, _constant(b"\r\n"), text, _constant(b"\r\n"), _constant(b"")
        )
        if text.null_count:
            optional.append(text)
            piece = piece.fill_null(_constant(b""))
        parts.append(piece)
    counts: Any = _constant(b"%d" % arguments)
    if optional:
        missing = sum((pc.multiply(column.is_null().cast(pa.int32()), 2).to_numpy() for column in optional), 0)
        counts = pa.array(arguments - missing).cast(pa.string()).cast(pa.large_binary())
    else:
        counts = pa.repeat(counts, rows)
    prefix = _constant(b"\r\n" + b"".join(map(bulk, xadd)))
    return pc.binary_join_element_wise(_constant(b"*"), counts, prefix, *parts, _constant(b""))


def _constant(value: bytes) -> pa.Scalar:
    return pa.scalar(value, pa.large_binary())


def cut(packed: pa.Array, entries_max: int, bytes_max: int) -> Iterator[tuple[bytes, int]]:
    """Packed commands in runs of at most so many entries and about so many bytes, as (bytes, entries)."""
    offsets = np.frombuffer(packed.buffers()[1], np.int64)[packed.offset : packed.offset + len(packed) + 1]
    buffer = memoryview(packed.buffers()[2])
    start = 0
    while start < len(packed):
        fits = int(np.searchsorted(offsets, offsets[start] + bytes_max, side="right")) - 1
        end = max(start + 1, min(start + entries_max, fits, len(packed)))
        yield bytes(buffer[offsets[start] : offsets[end]]), end - start
        start = end

"""Entries to change columns, or a rejection with its reason. Pure: Arrow in, Arrow out, no I/O, no clock.

Guarantees: every entry read becomes at least one change or one rejection that holds its raw bytes; the order
of reading is kept. Does not look inside JSON: `admit` does, in DuckDB, for whole columns at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from attrs import field, frozen

from replicator.canonical import embed_json, json_objects
from replicator.decode_arrow import ArrowEntries, decode_arrow
from replicator.decode_parts import EMPTY_CHANGES, RAW_CHANGE_SCHEMA, Rejections, parse_times
from replicator.decode_parts import text_column as text
from replicator.resp import EntryFields, EntryIds

CONTROLS = ("op", "key", "ts", "id", "v", "table", "traceparent")
CONTROL_NAMES = frozenset(name.encode() for name in CONTROLS)
OPS = frozenset("cudr")
TRACEPARENT_NAMES = frozenset({b"traceparent", b"_traceparent"})
TRACEPARENTS_MAX = 32
"""Of a read's trace contexts so many are told to telemetry, from its first entries."""
Column = Sequence[bytes] | pa.BinaryArray
PAYLOAD_BYTES_MAX = 64 << 20
"""A larger payload is rejected: DuckDB's JSON reader and the sink both hold it whole, several times."""


@frozen(kw_only=True)
class StreamRead:
    """What one XREAD gave for one stream. ``ids[i]`` and ``fields[i]`` (names and values in turn) belong together."""

    stream: str
    stream_epoch: int
    ids: Sequence[bytes]
    fields: Sequence[Sequence[bytes] | None]
    skip_through_row: int | None = field(default=None)
    """Rows of the first entry up to this one are in the log already."""
    table: str | None = field(default=None)
    """The table that its entries mean where they do not name one; None: the stream's own name."""
    json_columns: Mapping[str, frozenset[str]] = field(factory=dict)
    """By table the columns that are JSON: a text that is JSON stands for itself there, in every encoding."""

    @property
    def payload_bytes(self) -> int:
        return sum(sum(map(len, f)) for f in self.fields if f)


@frozen(kw_only=True)
class Decoded:
    """Changes and rejections of one read; ``entry_index`` in both is the entry's place in the read."""

    read: StreamRead
    changes: pa.Table
    rejections: pa.Table


def decode(read: StreamRead, encodings: Mapping[str, str]) -> Decoded:
    """Decode one stream's entries.

    ``encodings`` maps a stream to "json", "flat" or "arrow" where the configuration overrides detection.
    """
    rejections = Rejections(read)
    parts = []
    for names, index in _by_shape(read, rejections):
        group = _Group(read=read, index=index, values=_values(read, names, index), rejections=rejections)
        parts.append(_decode_group(group, encodings.get(read.stream, "auto")))
    changes = pa.concat_tables(parts) if parts else EMPTY_CHANGES
    if len(parts) > 1:
        changes = changes.sort_by([("entry_index", "ascending"), ("entry_row", "ascending")])
    whole = (
        0 in rejections.indexes
    )  # not even a part of the first entry can be read any more: its rest is kept as it is
    rejected = rejections.table() if whole else _skip(rejections.table(), read)
    return Decoded(read=read, changes=_skip(changes, read), rejections=rejected)


def _values(read: StreamRead, names: Sequence[bytes], index: Sequence[int]) -> Mapping[bytes, Column]:
    if isinstance(read.fields, EntryFields):
        return dict(zip(names, read.fields.columns, strict=True))
    columns = list(zip(*(read.fields[i] for i in index), strict=True))
    return dict(zip(names, columns[1::2], strict=True))


@frozen(kw_only=True)
class _Group:
    """Entries of one read that have the same field names in the same order."""

    read: StreamRead
    index: Sequence[int]
    values: Mapping[bytes, Column]
    rejections: Rejections


def traceparents(read: StreamRead) -> tuple[str, ...]:
    """The trace contexts among a read's first entries. Costs nothing where producers send none."""
    fields = read.fields
    if isinstance(fields, EntryFields):
        sent = [c for n, c in zip(fields.names, fields.columns, strict=True) if n in TRACEPARENT_NAMES]
        found = sent[0].slice(0, TRACEPARENTS_MAX).to_pylist() if sent else []
    else:
        first = [entry for entry in fields[:TRACEPARENTS_MAX] if entry]
        found = [v for entry in first for n, v in zip(entry[::2], entry[1::2], strict=False) if n in TRACEPARENT_NAMES]
    return tuple(value.decode("ascii", "replace") for value in found if value)


def _by_shape(read: StreamRead, rejections: Rejections) -> list[tuple[tuple[bytes, ...], Sequence[int]]]:
    """Group entries by their field names; the usual case, one shape, touches no entry in Python."""
    fields = read.fields
    names = fields.names if isinstance(fields, EntryFields) else _one_shape(fields)
    if names is not None:
        groups: Mapping[tuple[bytes, ...], Sequence[int]] = {names: range(len(fields))}
    else:
        mixed: dict[tuple[bytes, ...], list[int]] = {}
        for i, entry in enumerate(fields):
            mixed.setdefault(tuple(entry[::2]) if entry else (), []).append(i)
        groups = mixed
    usable = []
    for shape, index in groups.items():
        if not shape:
            rejections.add_all(index, "the entry has no fields (deleted while it was read, or sent empty)")
        elif len(set(shape)) != len(shape):
            rejections.add_all(index, "the entry names a field twice")
        else:
            usable.append((shape, index))
    return usable


def _one_shape(fields: Sequence[Sequence[bytes] | None]) -> tuple[bytes, ...] | None:
    if not fields or not fields[0] or not all(fields):
        return None
    first = fields[0]
    if len(set(map(len, fields))) != 1:
        return None
    for place in range(0, len(first), 2):
        if len({entry[place] for entry in fields}) != 1:
            return None
    return tuple(first[::2])


def detect(names: Sequence[bytes]) -> str:
    """The encoding that these field names speak."""
    rest = set(names) - CONTROL_NAMES
    if rest == {b"data"} or (not rest and b"op" in names):
        return "json"
    return "arrow" if rest == {b"batch"} else "flat"


def _decode_group(group: _Group, encoding: str) -> pa.Table:
    chosen = detect(list(group.values)) if encoding == "auto" else encoding
    if chosen == "arrow":
        values = {n: v.to_pylist() if isinstance(v, pa.Array) else v for n, v in group.values.items()}
        entries = ArrowEntries(read=group.read, index=group.index, values=values, rejections=group.rejections)
        return decode_arrow(entries)
    columns = _flat_columns(group) if chosen == "flat" else _json_columns(group)
    return _finish(group, columns)


def _json_columns(group: _Group) -> dict[str, pa.Array]:
    values = {name.decode("utf-8", "replace"): column for name, column in group.values.items()}
    reject = group.rejections
    unknown = sorted(set(values) - set(CONTROLS) - {"data"})
    if unknown:
        reject.add_all(group.index, f"unknown field {unknown[0]!r} beside `data`")
    columns = {name: text(column, group.index, name, reject) for name, column in values.items() if name not in unknown}
    columns.setdefault("data", pa.nulls(len(group.index), pa.string()))
    return columns


def _flat_columns(group: _Group) -> dict[str, pa.Array]:
    """Controls by their names without the underscore, and ``data``: the other fields as one JSON object of texts."""
    columns: dict[str, pa.Array] = {}
    members: dict[str, pa.Array] = {}
    for raw_name, column in group.values.items():
        try:
            name = raw_name.decode()
        except UnicodeDecodeError:
            group.rejections.add_all(group.index, f"field name {raw_name!r} is not UTF-8")
            continue
        values = text(column, group.index, name, group.rejections)
        if name.startswith("_") and name[1:] in CONTROLS:
            columns[name[1:]] = values
        else:
            members[name] = values
    rows, read = len(group.index), group.read
    tables = columns.get("table", pa.nulls(rows, pa.string())).fill_null(read.table or read.stream)
    members = embed_json(members, tables, read.json_columns)
    columns["data"] = json_objects(members, rows) if members else pa.nulls(rows, pa.string())
    return columns


def _finish(group: _Group, columns: Mapping[str, pa.Array]) -> pa.Table:
    read, index, reject = group.read, group.index, group.rejections
    rows = len(index)
    nothing = pa.nulls(rows, pa.string())
    op = _ops(columns.get("op"), group)
    times = parse_times(columns.get("ts"), rows)
    for i, reason in times.misfits:
        reject.add(index[i], reason)
    payload = columns["data"]
    _check_payload(payload, op, columns.get("key"), group)
    table_name = (
        pc.fill_null(columns["table"], read.table or read.stream)
        if "table" in columns
        else pa.repeat(read.table or read.stream, rows)
    )
    table = pa.table(
        {
            "table_name": table_name,
            "op": op,
            "key": columns.get("key", nothing),
            "payload": payload,
            "schema_version": pa.repeat(pa.scalar(0, pa.int32()), rows),
            "producer_schema": columns.get("v", nothing),
            "event_id": columns.get("id", nothing),
            "event_at": times.values,
            "stream": pa.repeat(read.stream, rows),
            "stream_epoch": pa.repeat(pa.scalar(read.stream_epoch, pa.int32()), rows),
            "entry_id": _entry_ids(read, index),
            "entry_row": pa.repeat(pa.scalar(0, pa.int32()), rows),
            "entry_index": pa.array(np.asarray(index, dtype=np.int32)),
        },
        schema=RAW_CHANGE_SCHEMA,
    )
    if not reject.indexes:
        return table
    return table.filter(pc.invert(pc.is_in(table["entry_index"], pa.array(sorted(reject.indexes), pa.int32()))))


def _entry_ids(read: StreamRead, index: Sequence[int]) -> pa.Array:
    if isinstance(read.ids, EntryIds):
        return read.ids.column.cast(pa.string())
    ids = read.ids if isinstance(index, range) else [read.ids[i] for i in index]
    return pa.array(ids, pa.binary()).cast(pa.string())


def _ops(column: pa.Array | None, group: _Group) -> pa.Array:
    if column is None:
        return pa.repeat("u", len(group.index))
    ops = pc.fill_null(column, "u")
    unknown = set(pc.unique(ops).to_pylist()) - OPS
    for op in unknown:
        reason = f"op {op[:40]!r} is none of c (create), u (update), d (delete), r (snapshot read)"
        group.rejections.add_all([group.index[i] for i in np.flatnonzero(pc.equal(ops, op).to_numpy(False))], reason)
    return ops


def _check_payload(payload: pa.Array, op: pa.Array, key: pa.Array | None, group: _Group) -> None:
    """Without `data` only a delete that names its key says anything; a payload has a largest size."""
    size = pc.binary_length(payload)
    if (pc.max(size).as_py() or 0) > PAYLOAD_BYTES_MAX:
        too_big = np.flatnonzero(pc.fill_null(pc.greater(size, PAYLOAD_BYTES_MAX), False).to_numpy(False))
        group.rejections.add_all([group.index[i] for i in too_big], f"the payload is over {PAYLOAD_BYTES_MAX} bytes")
    if payload.null_count == 0:
        return
    has_key = pc.is_valid(key) if key is not None else pa.repeat(False, len(payload))
    bare = pc.and_(pc.is_null(payload), pc.invert(pc.and_(pc.equal(op, "d"), has_key)))
    missing = np.flatnonzero(bare.to_numpy(False))
    group.rejections.add_all(
        [group.index[i] for i in missing], "no `data`: only a delete with its `key` can do without"
    )


def _skip(table: pa.Table, read: StreamRead) -> pa.Table:
    if read.skip_through_row is None or table.num_rows == 0:
        return table
    known = pc.and_(pc.equal(table["entry_index"], 0), pc.less_equal(table["entry_row"], read.skip_through_row))
    return table.filter(pc.invert(known))

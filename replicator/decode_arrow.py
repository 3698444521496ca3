"""The arrow encoding: many changes in one entry, as one Arrow IPC stream. Pure.

Guarantees: an entry that cannot be read whole is rejected whole; values become canonical JSON without loss
(decimals and integers beyond 2^53 as strings, binary as base64, NaN and infinities as strings).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen

from replicator.canonical import embed_json, json_objects
from replicator.decode_parts import (
    EMPTY_CHANGES,
    RAW_CHANGE_SCHEMA,
    Rejections,
    Times,
    pack_row,
    parse_times,
    text_column,
)
from replicator.errors import UsageError

if TYPE_CHECKING:
    from replicator.decode import StreamRead

ROWS_MAX = 100_000
ROW_CONTROLS = ("_op", "_key", "_ts", "_id")


@frozen(kw_only=True)
class ArrowEntries:
    """Entries of one read whose payload is an Arrow IPC stream in the field ``batch``."""

    read: StreamRead
    index: Sequence[int]
    values: Mapping[bytes, Sequence[bytes]]
    rejections: Rejections


def decode_arrow(entries: ArrowEntries) -> pa.Table:
    """All rows of all entries, as RAW_CHANGE_SCHEMA; entries that are no such stream are rejected."""
    batches = entries.values.get(b"batch")
    if batches is None:
        entries.rejections.add_all(entries.index, "no field `batch`, which the arrow encoding needs")
        return EMPTY_CHANGES
    controls = {
        name.decode("utf-8", "replace").lstrip("_"): text_column(values, entries.index, repr(name), entries.rejections)
        for name, values in entries.values.items()
        if name != b"batch"
    }
    tables = []
    for place, blob in enumerate(batches):
        index = entries.index[place]
        if index in entries.rejections.indexes:
            continue
        given = {name: column[place].as_py() for name, column in controls.items()}
        try:
            tables.append(_entry_changes(entries, index, _read(blob), given))
        except (pa.ArrowException, UsageError, ValueError, OSError, MemoryError) as error:
            entries.rejections.add(index, f"`batch` cannot be read: {str(error).splitlines()[0][:300]}")
    return pa.concat_tables(tables) if tables else EMPTY_CHANGES


def _read(blob: bytes) -> pa.Table:
    with pa.ipc.open_stream(blob) as reader:
        table = reader.read_all()
    if table.num_rows == 0:
        raise ValueError("it holds no rows")
    if table.num_rows > ROWS_MAX:
        raise ValueError(f"{table.num_rows} rows, more than the {ROWS_MAX} that one entry may hold")
    if len(set(table.column_names)) != table.num_columns:
        raise ValueError("a column name stands twice")
    table.validate(full=True)
    return table.combine_chunks()


def _entry_changes(entries: ArrowEntries, index: int, table: pa.Table, given: Mapping[str, str | None]) -> pa.Table:
    read, rows = entries.read, table.num_rows
    unknown = sorted(set(given) - {"op", "v", "table", "ts", "traceparent"})
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r} beside `batch`")
    nothing = pa.nulls(rows, pa.string())
    control = {
        name: pc.cast(table[name].combine_chunks(), pa.string())
        for name in ROW_CONTROLS
        if name in table.column_names and name != "_ts"
    }
    default_op = "u" if given.get("op") is None else given["op"]
    op = pc.fill_null(control["_op"], default_op) if "_op" in control else pa.repeat(default_op, rows)
    times = _times(table, given.get("ts"))
    misfits = [*_bad_ops(op), *times.misfits]
    if rows and not table.drop_columns([n for n in ROW_CONTROLS if n in table.column_names]).num_columns:
        raise ValueError("the batch has no columns of its own")
    own = table.drop_columns([n for n in ROW_CONTROLS if n in table.column_names])
    tables = pa.repeat(given.get("table") or read.table or read.stream, rows)
    members = embed_json(dict(zip(own.column_names, own.columns, strict=True)), tables, read.json_columns)
    payload = json_objects(members, rows)
    changes = pa.table(
        {
            "table_name": tables,
            "op": op,
            "key": control.get("_key", nothing),
            "payload": payload,
            "schema_version": pa.repeat(pa.scalar(0, pa.int32()), rows),
            "producer_schema": pa.repeat(pa.scalar(given.get("v"), pa.string()), rows),
            "event_id": control.get("_id", nothing),
            "event_at": times.values,
            "stream": pa.repeat(read.stream, rows),
            "stream_epoch": pa.repeat(pa.scalar(read.stream_epoch, pa.int32()), rows),
            "entry_id": pa.repeat(read.ids[index].decode(), rows),
            "entry_row": pa.array(np.arange(rows, dtype=np.int32)),
            "entry_index": pa.repeat(pa.scalar(index, pa.int32()), rows),
        },
        schema=RAW_CHANGE_SCHEMA,
    )
    return _without_misfits(entries.rejections, index, changes, misfits)


def _times(table: pa.Table, given: str | None) -> Times:
    rows = table.num_rows
    if "_ts" not in table.column_names:
        return parse_times(None if given is None else pa.repeat(given, rows), rows)
    column = table["_ts"].combine_chunks()
    if not pa.types.is_timestamp(column.type):
        return parse_times(pc.cast(column, pa.string()), rows)
    instants = column.cast(pa.timestamp(column.type.unit))  # in UTC: what a zone adds is only how it is shown
    values = pc.cast(instants, pa.timestamp("us"), safe=False)
    exact = pc.equal(pc.cast(values, instants.type, safe=False), instants)
    unfit = np.flatnonzero(pc.invert(pc.fill_null(exact, True)).to_numpy(False))
    reason = f"_ts has nanoseconds, or lies beyond what microseconds can hold ({column.type})"
    return Times(values=values, misfits=[(int(row), reason) for row in unfit])


def _bad_ops(op: pa.Array) -> list[tuple[int, str]]:
    bad = np.flatnonzero(pc.invert(pc.is_in(op, pa.array(["c", "u", "d", "r"]))).to_numpy(False))
    return [(int(row), f"op {op[int(row)].as_py()[:40]!r} is none of c, u, d, r") for row in bad]


def _without_misfits(
    rejections: Rejections, index: int, changes: pa.Table, misfits: Sequence[tuple[int, str]]
) -> pa.Table:
    if not misfits:
        return changes
    for row, reason in dict(reversed(misfits)).items():
        rejections.add_row(index, row, reason, pack_row(changes.slice(row, 1).to_pylist()[0]))
    rows = pa.array(sorted({row for row, _ in misfits}), pa.int32())
    return changes.filter(pc.invert(pc.is_in(changes["entry_row"], rows)))

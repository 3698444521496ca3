"""Logged changes in the form in which they travel to ClickHouse, as SQL for DuckDB and as an Arrow schema. Pure.

ClickHouse corrupts Arrow in silence where types differ, so every column leaves DuckDB in the very type its table
expects, none is left out, and the batch is held against ``arrow_schema`` before it is sent. The last column,
``_row_hash``, is for the batch's checksum and stays here.
"""

from __future__ import annotations

import pyarrow as pa

from replicator.checksum import hashed_columns, row_hash_duckdb
from replicator.column_types import ColumnType, Kind
from replicator.log_columns import GENERIC, LEADING, PIPELINE, SEND, TRAILING, LogColumn
from replicator.schema import TableSchema, quote
from replicator.typed import typed_rows_sql

ROW_HASH = "_row_hash"
_DIGITS_PADDED = 40
"""More than 16, the length at which ClickHouse takes a text for the bytes of a 128-bit integer. Source: measured."""


def wire_sql(schema: TableSchema, source: str, table: TableSchema | None = None) -> str:
    """A batch of T_log from ``source``, changes that were all written under ``schema``.

    ``table`` is the schema that the table in ClickHouse has by now (default the same): its columns are sent, those
    unknown to ``schema`` as NULL; the hash is that of ``schema``. All of T_log but ``_pipeline`` and ``_send``,
    which the sender adds.
    """
    table = table or schema
    known = {column.name for column in schema.columns}
    typed = [
        f"{_wired(column.type, quote(column.name) if column.name in known else 'null')} as {quote(column.name)}"
        for column in table.columns
    ]
    ours = [[quote(column.name) for column in part] for part in (LEADING, TRAILING)]
    row_hash = f"{row_hash_duckdb(hashed_columns(schema))} as {ROW_HASH}"
    return f"select {', '.join([*ours[0], *typed, *ours[1], row_hash])} from ({typed_rows_sql(schema, source)})"


def arrow_schema(table: TableSchema) -> pa.Schema:
    """Exactly T_log's columns: what ``wire_sql`` yields less ``_row_hash``, with ``_pipeline`` and ``_send``."""
    ours = [[_log_field(column) for column in part] for part in ([PIPELINE], LEADING, TRAILING, [SEND])]
    typed = [pa.field(column.name, column.type.arrow, nullable=not table.is_key(column)) for column in table.columns]
    return pa.schema([*ours[0], *ours[1], *typed, *ours[2], *ours[3]])


def conform(batch: pa.Table, schema: pa.Schema) -> pa.Table:
    """The batch in the very columns, types and nullability of ``schema``.

    Raises ValueError where a column is missing or not ours, a value would change, or NULL has no place: ClickHouse
    would take each of these in silence (a missing column too: insert_arrow names only those that the batch has, which
    disarms ``input_format_arrow_allow_missing_columns=0``. Source: measured with clickhouse-connect 1.12).
    """
    names = set(batch.column_names) ^ set(schema.names)
    if names or batch.num_columns != len(schema):
        raise ValueError(f"columns {sorted(names) or 'named twice'} are not both in the batch and in its table")
    try:
        return batch.select(schema.names).cast(schema, safe=True)
    except pa.ArrowNotImplementedError as error:
        raise ValueError(f"a column has a type that its table cannot take: {error}") from error


def _log_field(column: LogColumn) -> pa.Field:
    return pa.field(column.name, column.arrow, nullable="Nullable" in column.clickhouse)


GENERIC_ARROW_SCHEMA = pa.schema([_log_field(column) for column in (PIPELINE, *GENERIC, SEND)])
"""The same for ClickHouse's ``change_log``, whose columns are those of the log."""


def _wired(column_type: ColumnType, value: str) -> str:
    match column_type.kind:
        case Kind.INTEGER if column_type.bits == 128:
            return _padded(f"cast({value} as {column_type.duckdb})")
        case Kind.UUID | Kind.ENUM | Kind.JSON:
            return f"cast({value} as varchar)"
        case Kind.TIMESTAMP if column_type.zoned:
            return f"make_timestamp(epoch_us({value}))"
    return f"cast({value} as {column_type.duckdb})"


def _padded(value: str) -> str:
    text = f"cast({value} as varchar)"
    negative = f"'-' || lpad(substr({text}, 2), {_DIGITS_PADDED}, '0')"
    return f"case when {value} < 0 then {negative} else lpad({text}, {_DIGITS_PADDED}, '0') end"

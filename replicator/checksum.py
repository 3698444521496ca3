"""The hash of a row, and the sums over a range of rows, as SQL that gives the same numbers on both sides. Pure.

The hash is the low 64 bits of the MD5 of one text: for each hashed column ``<byte length>:<bytes>`` where its length
varies (``:`` alone is NULL) and ``<text>;`` where it does not (``;`` alone is NULL), so that different rows never
share a text. Texts are canonical: decimals at their scale, instants as epoch micro- or nanoseconds, floats by their
bits (every NaN alike), blobs in hexadecimal. Hashed are ``_op``, ``_version``, the event and entry ids and every
column of the table: never ``_send``, a delivery time or the payload, which the typed columns restate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

from replicator.column_types import ColumnType, Kind, parse_type
from replicator.log_columns import GENERIC
from replicator.schema import TableSchema, quote, quote_clickhouse
from replicator.typed_text import decimal_text

_LOW_64_BITS = "18446744073709551615::uhugeint"
_WRAP = "18446744073709551616::hugeint"


@frozen(kw_only=True)
class HashedColumn:
    """A column, the same name on both sides, and the type under which it is hashed."""

    name: str
    type: ColumnType


def _hashed(name: str, type_name: str) -> HashedColumn:
    return HashedColumn(name=name, type=parse_type(type_name))


_OURS = (
    _hashed("_op", "VARCHAR"),
    _hashed("_version", "UBIGINT"),
    _hashed("_event_id", "VARCHAR"),
    _hashed("_entry_id", "VARCHAR"),
)
GENERIC_HASHED = (
    _hashed("table_name", "VARCHAR"),
    _hashed("op", "VARCHAR"),
    _hashed("version", "UBIGINT"),
    _hashed("key", "VARCHAR"),
    _hashed("payload", "VARCHAR"),
    _hashed("event_id", "VARCHAR"),
    _hashed("entry_id", "VARCHAR"),
)
"""What is hashed of a change whose table is not declared."""
assert {column.name for column in GENERIC_HASHED} <= {column.name for column in GENERIC}


def hashed_columns(schema: TableSchema) -> tuple[HashedColumn, ...]:
    """What is hashed of a row of T_log, in order. Widening a type leaves the hashes of old rows as they were."""
    return (*_OURS, *(HashedColumn(name=column.name, type=column.type) for column in schema.columns))


def row_hash_duckdb(columns: Sequence[HashedColumn]) -> str:
    """A UBIGINT from typed columns. ``concat`` takes NULL as nothing, which is what frames a NULL."""
    parts = [part for column in columns for part in _parts_duckdb(column)]
    # md5_number is a third of the cost of md5_number_upper, which formats it first.
    return f"cast(md5_number(concat({', '.join(parts)})) & {_LOW_64_BITS} as ubigint)"


def row_hash_clickhouse(columns: Sequence[HashedColumn]) -> str:
    """The same number as a UInt64 from the columns of the same names, whatever wider type they have by now."""
    parts = [part for column in columns for part in _parts_clickhouse(column)]
    return f"reinterpretAsUInt64(substring(MD5(concat({', '.join(parts)})), 1, 8))"


def sums_duckdb(row_hash: str, offset: str) -> str:
    """Select list: row_count, first_offset, last_offset, hash_sum, hash_xor (UBIGINT, the sum wrapping)."""
    return (
        f"count(*) as row_count, min({offset}) as first_offset, max({offset}) as last_offset, "
        f"cast(coalesce(sum({row_hash}), 0) % {_WRAP} as ubigint) as hash_sum, "
        f"coalesce(bit_xor({row_hash}), 0::ubigint) as hash_xor"
    )


def sums_clickhouse(row_hash: str, offset: str) -> str:
    """The same select list; ClickHouse's sum of UInt64 wraps by itself."""
    return (
        f"count() as row_count, min({offset}) as first_offset, max({offset}) as last_offset, "
        f"sum({row_hash}) as hash_sum, groupBitXor({row_hash}) as hash_xor"
    )


def range_sums_duckdb(rows: str, columns: Sequence[HashedColumn], offset: str, bucket_rows: int | None = None) -> str:
    """Sums over ``rows`` (a query or table with the hashed columns and ``offset``).

    With ``bucket_rows`` one row per bucket of that many offsets, named by its first possible offset.
    """
    hashed = f"select {quote(offset)} as at_offset, {row_hash_duckdb(columns)} as row_hash from {rows}"
    bucket, grouping = _bucket("(at_offset - 1) // {0} * {0} + 1", bucket_rows)
    return f"select {bucket}{sums_duckdb('row_hash', 'at_offset')} from ({hashed}){grouping}"


def range_sums_clickhouse(
    rows: str, columns: Sequence[HashedColumn], offset: str, bucket_rows: int | None = None
) -> str:
    """The same over ``rows`` in ClickHouse, for example ``(select * from t_log final where …)``."""
    hashed = f"select {quote_clickhouse(offset)} as at_offset, {row_hash_clickhouse(columns)} as row_hash from {rows}"
    bucket, grouping = _bucket("intDiv(at_offset - 1, {0}) * {0} + 1", bucket_rows)
    return f"select {bucket}{sums_clickhouse('row_hash', 'at_offset')} from ({hashed}){grouping}"


def row_hashes_duckdb(rows: str, columns: Sequence[HashedColumn], offset: str) -> str:
    """Rows (at_offset, row_hash) in the order of offsets, to find the rows that differ."""
    return f"select {quote(offset)} as at_offset, {row_hash_duckdb(columns)} as row_hash from {rows} order by 1"


def row_hashes_clickhouse(rows: str, columns: Sequence[HashedColumn], offset: str) -> str:
    """The same in ClickHouse."""
    name = quote_clickhouse(offset)
    return f"select {name} as at_offset, {row_hash_clickhouse(columns)} as row_hash from {rows} order by 1"


def _bucket(expression: str, bucket_rows: int | None) -> tuple[str, str]:
    if bucket_rows is None:
        return "", ""
    return f"{expression.format(bucket_rows)} as bucket_first, ", " group by bucket_first order by bucket_first"


def _varies(column_type: ColumnType) -> bool:
    return column_type.kind in (Kind.VARCHAR, Kind.BLOB, Kind.JSON, Kind.ENUM)


def _parts_duckdb(column: HashedColumn) -> tuple[str, ...]:
    text = _DUCKDB.get(column.type.kind, _as_is)(column.type, quote(column.name))
    return (f"strlen({text})", "':'", text) if _varies(column.type) else (text, "';'")


def _parts_clickhouse(column: HashedColumn) -> tuple[str, ...]:
    text = _CLICKHOUSE.get(column.type.kind, _text_clickhouse)(column.type, quote_clickhouse(column.name))
    if _varies(column.type):
        return f"ifNull(toString(length({text})), '')", "':'", f"ifNull({text}, '')"
    return f"ifNull({text}, '')", "';'"


def _as_is(_type: ColumnType, name: str) -> str:
    return name


def _enum_duckdb(_type: ColumnType, name: str) -> str:
    return f"cast({name} as varchar)"


def _blob_duckdb(_type: ColumnType, name: str) -> str:
    return f"hex({name})"


def _instant_duckdb(column_type: ColumnType, name: str) -> str:
    return f"epoch_{'ns' if column_type.scale == 9 else 'us'}({name})"


def _float_duckdb(column_type: ColumnType, name: str) -> str:
    bits = f"cast(cast(cast({name} as bit) as {'uinteger' if column_type.bits == 32 else 'ubigint'}) as varchar)"
    return f"case when isnan({name}) then 'nan' else {bits} end"


def _text_clickhouse(_type: ColumnType, name: str) -> str:
    return f"toString({name})"


def _decimal_clickhouse(column_type: ColumnType, name: str) -> str:
    """At its scale; where the column was widened since and holds more decimals, all of them, to differ."""
    scale = column_type.scale
    return f"if({name} = round({name}, {scale}), toDecimalString({name}, {scale}), toString({name}))"


def _instant_clickhouse(column_type: ColumnType, name: str) -> str:
    return f"toString(toUnixTimestamp64{'Nano' if column_type.scale == 9 else 'Micro'}({name}))"


def _float_clickhouse(column_type: ColumnType, name: str) -> str:
    """By its bits; where a FLOAT was widened since and holds more of them, as text, to differ."""
    bits = column_type.bits
    text = f"toString(reinterpretAsUInt{bits}(toFloat{bits}({name})))"
    if bits == 32:
        text = f"if(toFloat32({name}) = {name}, {text}, toString({name}))"
    return f"if(isNaN({name}), 'nan', {text})"


def _blob_clickhouse(_type: ColumnType, name: str) -> str:
    return f"hex({name})"


_Part = Callable[[ColumnType, str], str]
_DUCKDB: Mapping[Kind, _Part] = {
    Kind.DECIMAL: decimal_text,
    Kind.ENUM: _enum_duckdb,
    Kind.BLOB: _blob_duckdb,
    Kind.TIMESTAMP: _instant_duckdb,
    Kind.FLOAT: _float_duckdb,
}
_CLICKHOUSE: Mapping[Kind, _Part] = {
    Kind.DECIMAL: _decimal_clickhouse,
    Kind.TIMESTAMP: _instant_clickhouse,
    Kind.FLOAT: _float_clickhouse,
    Kind.BLOB: _blob_clickhouse,
}

"""Changes to type: payloads as a relation, what `typed` makes of them, and the names of every type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa

from replicator.column_types import Kind
from replicator.schema import TableSchema, quote
from replicator.typed import check_sql, misfit_count_sql, misfits_sql, typed_rows_sql

ENUM = "ENUM('buy', 'sell', 'it''s', 'true', '1')"


def relation(payloads: Sequence[str | None], op: str = "c", keys: Sequence[str | None] | None = None) -> pa.Table:
    return pa.table(
        {
            "row_index": pa.array(range(len(payloads)), pa.int64()),
            "op": pa.array([op] * len(payloads), pa.string()),
            "key": pa.array(keys or [None] * len(payloads), pa.string()),
            "payload": pa.array(payloads, pa.string()),
        }
    )


def checked(database: duckdb.DuckDBPyConnection, schema: TableSchema, rows: pa.Table) -> list[tuple[bool, str | None]]:
    database.register("changes", rows)
    found = database.execute(f"select fits, key from ({check_sql(schema, 'changes')}) order by row_index").fetchall()
    count = database.execute(misfit_count_sql(schema, "changes")).fetchall()[0][0]
    misfits = database.execute(misfits_sql(schema, "changes")).fetchall()
    refused = {row for row, (fits, _) in enumerate(found) if not fits}
    assert {row for row, _, _ in misfits} == refused, [m for m in misfits if m[0] not in refused]
    assert count == sum(not fits for fits, _ in found)
    return found


def reasons(
    database: duckdb.DuckDBPyConnection, schema: TableSchema, *payloads: str | None, op: str = "c"
) -> list[Any]:
    database.register("changes", relation(payloads, op))
    return database.execute(misfits_sql(schema, "changes")).fetchall()


LOG_COLUMNS = (
    "row_index + 1 as log_offset, (row_index + 1)::ubigint as version, 't' as table_name, op, key, payload, "
    "1 as schema_version, null::varchar as producer_schema, null::varchar as event_id, null::timestamp as event_at, "
    "timestamp '2026-01-01' as logged_at, 's' as stream, 1 as stream_epoch, row_index || '-0' as entry_id, "
    "0 as entry_row"
)


def typed(database: duckdb.DuckDBPyConnection, schema: TableSchema, rows: pa.Table, column: str = "x") -> list[Any]:
    database.register("changes", rows)
    query = typed_rows_sql(schema, f"(select {LOG_COLUMNS} from changes)")
    [kind] = [one.type for one in schema.columns if one.name == column]
    value = quote(column)
    if kind.kind is Kind.TIMESTAMP:  # as nanoseconds: Python has none, and fetching a TIMESTAMPTZ needs pytz
        value = f"epoch_ns({value})" if kind.scale == 9 else f"epoch_us({value})::hugeint * 1000"
    return [value for (value,) in database.execute(f"select {value} from ({query}) order by _offset").fetchall()]


EVERY_TYPE = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
    "DECIMAL(4,0)",
    "DECIMAL(5,5)",
    "DECIMAL(9,2)",
    "DECIMAL(18,6)",
    "DECIMAL(38,0)",
    "DECIMAL(38,38)",
    "DECIMAL(38,10)",
    "FLOAT",
    "DOUBLE",
    "BOOLEAN",
    "VARCHAR",
    "BLOB",
    "UUID",
    "DATE",
    "TIMESTAMP",
    "TIMESTAMPTZ",
    "TIMESTAMP_NS",
    "JSON",
    ENUM,
)

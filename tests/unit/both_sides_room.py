"""Two databases to compare: changes logged in DuckDB as capture would, sent to ClickHouse as deliver would.

Also a table of every type, with rows at the limits of each and random ones.
"""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
from clickhouse_connect.driver.client import Client

from replicator.checksum import (
    hashed_columns,
    range_sums_clickhouse,
    range_sums_duckdb,
    row_hashes_clickhouse,
    row_hashes_duckdb,
)
from replicator.column_types import ColumnType, Kind
from replicator.schema import TableSchema, table_schema
from replicator.sink import INSERT_SETTINGS
from replicator.sink_ddl import create_statements
from replicator.typed import check_sql, typed_rows_sql
from replicator.wire import ROW_HASH, arrow_schema, conform, wire_sql

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
COLUMNS = {
    **{name.lower(): name for name in INTEGERS},
    **{f"u{name.lower()}": f"U{name}" for name in INTEGERS},
    "d9": "DECIMAL(9,2)",
    "d18": "DECIMAL(18,6)",
    "d38": "DECIMAL(38,10)",
    "d5": "DECIMAL(5,5)",
    "d38_0": "DECIMAL(38,0)",
    "d38_38": "DECIMAL(38,38)",
    "f32": "FLOAT",
    "f64": "DOUBLE",
    "flag": "BOOLEAN",
    "text": "VARCHAR",
    "bytes": "BLOB",
    "id": "UUID",
    "day": "DATE",
    "at": "TIMESTAMP",
    "at_zoned": "TIMESTAMPTZ",
    "at_ns": "TIMESTAMP_NS",
    "nested": "JSON",
    "side": "ENUM('buy', 'sell', 'it''s', 'back\\slash', 'ü')",
}
EVERYTHING = table_schema("everything", {"k": "BIGINT"} | COLUMNS, ["k"])


def append(
    log: duckdb.DuckDBPyConnection,
    schema: TableSchema,
    payloads: Sequence[dict[str, Any] | str | None],
    ops: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
) -> None:
    """Log changes as capture would: only those that fit, with their canonical key."""
    texts = [json.dumps(one, ensure_ascii=False) if isinstance(one, dict) else one for one in payloads]
    changes = pa.table(
        {
            "row_index": pa.array(range(len(texts)), pa.int64()),
            "op": pa.array(ops or ["u"] * len(texts), pa.string()),
            "key": pa.array(keys or [None] * len(texts), pa.string()),
            "payload": pa.array(texts, pa.string()),
        }
    )
    log.register("changes", changes)
    head = log.execute("select coalesce(max(log_offset), 0) from change_log").fetchall()[0][0]
    misfits = log.execute(f"select * from ({check_sql(schema, 'changes')}) where not fits").fetchall()
    assert not misfits, misfits
    log.execute(
        f"""insert into change_log select {head} + 1 + row_index, ((1::ubigint << 48) + {head} + 1 + row_index)::ubigint,
        '{schema.name}', op, checked.key, payload, {schema.schema_version}, null,
        case when row_index % 2 = 0 then 'event-' || row_index end, timestamp '2026-01-01 00:00:00.123456',
        timestamp '2026-01-02', 'stream', 1, '1-' || row_index, 0
        from changes join ({check_sql(schema, "changes")}) as checked using (row_index) order by row_index"""
    )


def create(clickhouse: Client, schema: TableSchema) -> None:
    for statement in create_statements(schema):
        clickhouse.command(statement)


def wired(
    log: duckdb.DuckDBPyConnection,
    schema: TableSchema,
    first: int = 1,
    last: int = 1 << 40,
    *,
    table: TableSchema | None = None,
) -> pa.Table:
    source = f"(select * from change_log where log_offset between {first} and {last})"
    return log.sql(wire_sql(schema, source, table)).to_arrow_table()


def send(
    clickhouse: Client,
    log: duckdb.DuckDBPyConnection,
    schema: TableSchema,
    first: int = 1,
    last: int = 1 << 40,
    *,
    table: TableSchema | None = None,
    send: int = 1,
) -> None:
    insert(
        clickhouse, schema.log_name, wired(log, schema, first, last, table=table), arrow_schema(table or schema), send
    )


def insert(clickhouse: Client, target: str, batch: pa.Table, shape: pa.Schema, send: int = 1) -> None:
    batch = batch.drop_columns([ROW_HASH])
    batch = batch.append_column("_pipeline", pa.repeat("main", batch.num_rows))
    batch = batch.append_column("_send", pa.repeat(pa.scalar(send, pa.uint64()), batch.num_rows))
    clickhouse.insert_arrow(target, conform(batch, shape), settings=INSERT_SETTINGS)


def assert_equal_hashes(clickhouse: Client, log: duckdb.DuckDBPyConnection, schema: TableSchema) -> None:
    """Every row and the sums over all of them, and the batch's own hashes."""
    columns = hashed_columns(schema)
    version = f"schema_version = {schema.schema_version}"
    rows = f"({typed_rows_sql(schema, f'(select * from change_log where {version})')})"
    held = f"(select * from `{schema.log_name}` final where _pipeline = 'main' and _{version})"
    ours = log.execute(row_hashes_duckdb(rows, columns, "_offset")).fetchall()
    theirs = clickhouse.query(row_hashes_clickhouse(held, columns, "_offset")).result_rows
    assert [tuple(row) for row in theirs] == ours
    for bucket_rows in (None, 7):
        sums = log.execute(range_sums_duckdb(rows, columns, "_offset", bucket_rows)).fetchall()
        held_sums = clickhouse.query(range_sums_clickhouse(held, columns, "_offset", bucket_rows)).result_rows
        assert [tuple(row) for row in held_sums] == sums


def limits(kind: ColumnType) -> list[str | None]:
    """JSON texts at the edges of a type."""
    match kind.kind:
        case Kind.INTEGER:
            low, high = kind.bounds
            found = [str(n) for n in {low, low + 1, high, high - 1, 0, 1, 2**53 + 1, 10**15 - 1} if low <= n <= high]
        case Kind.DECIMAL:
            most = Decimal((0, (9,) * kind.digits, -kind.scale))
            least = Decimal(1).scaleb(-kind.scale)
            found = [f'"{sign}{n:f}"' for n in (most, least, Decimal(0)) for sign in ("", "-")] + ["0"]
        case Kind.FLOAT:
            found = ['"NaN"', '"Infinity"', '"-Infinity"', "0", "-0.0", "0.1", "1e-45", "3.4028234663852886e38"]
            found += [] if kind.bits == 32 else ["5e-324", "1.7976931348623157e308", "9007199254740993"]
        case Kind.BOOLEAN:
            found = ["true", "false"]
        case Kind.VARCHAR:
            texts = ["", "N", ":", ";", "0:", "a\0b", "ü😀\u202e", "'", '"\\', "null", "x" * 70_000, "\n\t"]
            found = [json.dumps(text) for text in texts]
        case Kind.BLOB:
            blobs = [b"", b"\0", b"\xff\xfe", bytes(range(256)), b"0123456789abcdef", b"16 bytes as text"]
            found = [json.dumps(base64.b64encode(blob).decode()) for blob in blobs]
        case Kind.UUID:
            found = [f'"{"0" * 8}-0000-0000-0000-{"0" * 12}"', '"FFFFFFFF-ffff-FFFF-ffff-FFFFFFFFFFFF"']
        case Kind.DATE:
            found = ['"1900-01-01"', '"1969-12-31"', '"1970-01-01"', '"2299-12-31"', '"2000-02-29"']
        case Kind.TIMESTAMP:
            last = "2262-04-11T23:47:16.854775806Z" if kind.scale == 9 else "2299-12-31T23:59:59.999999Z"
            found = [f'"{last}"', '"1900-01-01T00:00:00"', '"1969-12-31T23:59:59.999999+00:00"', "1767225600123"]
            found += ['"2026-01-01T00:00:00.123456789Z"'] if kind.scale == 9 else []
        case Kind.JSON:
            found = [
                '{"a": [1.10, "x\\u0000", null, {}], "a": 12345678901234567890}',
                '"text"',
                "1e400",
                "true",
                '"null"',
            ]
        case Kind.ENUM:
            found = [json.dumps(value) for value in kind.values]
    return [*found, None]


def drawn(kind: ColumnType, seed: random.Random) -> str | None:
    """A random JSON text that fits a type."""
    if seed.random() < 0.1:
        return None
    match kind.kind:
        case Kind.INTEGER:
            return f'"{seed.randint(*kind.bounds)}"'
        case Kind.DECIMAL:
            digits = tuple(seed.choices(range(10), k=seed.randint(1, kind.digits)))
            return f'"{Decimal((seed.randint(0, 1), digits, -kind.scale)):f}"'
        case Kind.FLOAT:
            bits = seed.getrandbits(kind.bits)
            value = struct.unpack("f" if kind.bits == 32 else "d", bits.to_bytes(kind.bits // 8, "little"))[0]
            return repr(value) if value - value == 0 else '"NaN"'
        case Kind.VARCHAR | Kind.JSON:
            return json.dumps("".join(map(chr, seed.choices([*range(1, 300), 0x1F600], k=seed.randint(0, 20)))))
        case Kind.BLOB:
            return json.dumps(base64.b64encode(seed.randbytes(seed.randint(0, 20))).decode())
        case Kind.DATE:
            return f'"{date(1900, 1, 1) + timedelta(days=seed.randrange(146_000))}"'
        case Kind.TIMESTAMP:
            instant = datetime(1900, 1, 1) + timedelta(microseconds=seed.randrange(11 * 10**15))
            return f'"{instant.isoformat(timespec="microseconds")}{"789" if kind.scale == 9 else ""}Z"'
        case Kind.UUID:
            text = f"{seed.getrandbits(128):032x}"
            return f'"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"'
    return seed.choice([text for text in limits(kind) if text])


def row(key: int, texts: dict[str, str | None]) -> str:
    members = [f'"k":{key}', *(f"{json.dumps(name)}:{text}" for name, text in texts.items() if text is not None)]
    return "{" + ",".join(members) + "}"


def every_limit() -> list[str]:
    edges = {column.name: limits(column.type) for column in EVERYTHING.columns[1:]}
    rows = max(map(len, edges.values()))
    return [row(n, {name: texts[n % len(texts)] for name, texts in edges.items()}) for n in range(rows)]


def random_rows(count: int, seed: random.Random) -> list[str]:
    return [row(1000 + n, {c.name: drawn(c.type, seed) for c in EVERYTHING.columns[1:]}) for n in range(count)]

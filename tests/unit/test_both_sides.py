"""DuckDB and ClickHouse side by side: the same values and the same hashes, and nothing bent on the way."""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from both_sides_room import (
    EVERYTHING,
    append,
    assert_equal_hashes,
    create,
    every_limit,
    insert,
    random_rows,
    send,
    wired,
)
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from replicator.checksum import (
    GENERIC_HASHED,
    hashed_columns,
    range_sums_duckdb,
    row_hashes_clickhouse,
    row_hashes_duckdb,
)
from replicator.column_types import Kind
from replicator.lanes import generic_lane
from replicator.model import Checksum
from replicator.schema import TableSchema, quote, table_schema
from replicator.sink import INSERT_SETTINGS
from replicator.typed import typed_rows_sql
from replicator.wire import GENERIC_ARROW_SCHEMA, ROW_HASH, arrow_schema, conform

MIGRATIONS = Path(__file__).parents[2] / "migrations"


def value_texts(schema: TableSchema) -> tuple[list[str], list[str]]:
    """Each column as comparable text on both sides, written without the code under test."""
    ours, theirs = [], []
    for column in schema.columns:
        name = quote(column.name)
        match column.type.kind:
            case Kind.BLOB:
                ours.append(f"lower(hex({name}))")
                theirs.append(f"lower(hex({name}))")
            case Kind.FLOAT:
                ours.append(f"case when isnan({name}) then 'nan' else {name}::bit::varchar end")
                integer = f"reinterpretAsUInt{column.type.bits}({name})"
                theirs.append(f"if(isNaN({name}), 'nan', leftPad(bin({integer}), {column.type.bits}, '0'))")
            case Kind.TIMESTAMP if column.type.scale == 6:
                ours.append(f"strftime(make_timestamp(epoch_us({name})), '%Y-%m-%d %H:%M:%S.%f')")
                theirs.append(f"toString({name})")
            case Kind.TIMESTAMP:
                ours.append(f"strftime({name}, '%Y-%m-%d %H:%M:%S.%n')")
                theirs.append(f"toString({name})")
            case Kind.DECIMAL if column.type.digits == column.type.scale:
                ours.append(f"regexp_replace({name}::varchar, '^(-?)[.]', '\\10.')")
                theirs.append(f"toDecimalString({name}, {column.type.scale})")
            case Kind.DECIMAL:
                ours.append(f"{name}::varchar")
                theirs.append(f"toDecimalString({name}, {column.type.scale})")
            case _:
                ours.append(f"{name}::varchar")
                theirs.append(f"toString({name})")
    return ours, theirs


def test_every_type_has_the_same_values_and_hashes_on_both_sides(clickhouse: Client, log: Any) -> None:
    seed = random.Random(20260101)
    create(clickhouse, EVERYTHING)
    payloads = every_limit() + random_rows(150, seed)
    append(
        log, EVERYTHING, [*payloads, None, "{}"], ["u"] * len(payloads) + ["d", "d"], [""] * len(payloads) + ["0", "1"]
    )
    send(clickhouse, log, EVERYTHING)
    ours, theirs = value_texts(EVERYTHING)
    found = log.execute(f"select {', '.join(ours)} from ({typed_rows_sql(EVERYTHING)}) order by _offset").fetchall()
    held = clickhouse.query(f"select {', '.join(theirs)} from everything_log order by _offset").result_columns
    for column, mine, other in zip(EVERYTHING.columns, zip(*found, strict=True), held, strict=True):
        assert list(other) == list(mine), column.name
    assert_equal_hashes(clickhouse, log, EVERYTHING)


def test_rows_that_differ_in_one_value_differ_in_their_hash(log: Any) -> None:
    schema = table_schema(
        "t", {"k": "INT", "a": "VARCHAR", "b": "VARCHAR", "n": "INT", "f": "DOUBLE", "x": "BLOB"}, ["k"]
    )
    rows: list[dict[str, Any]] = [
        {},
        {"a": ""},
        {"b": ""},
        {"a": "", "b": ""},
        {"a": "ab", "b": "c"},
        {"a": "a", "b": "bc"},
        {"a": "1:x"},
        {"a": "", "b": "0:"},
        {"n": 0},
        {"f": 0},
        {"f": -0.0},
        {"x": ""},
        {"x": "AA=="},
        {"a": "00"},
    ]
    append(log, schema, [{"k": 1} | one for one in rows])
    # Everything but the row's own place: the same version and ids for all.
    same = "select * replace (1::ubigint as _version, null as _event_id, '1-0' as _entry_id)"
    hashed = row_hashes_duckdb(f"({same} from ({typed_rows_sql(schema)}))", hashed_columns(schema), "_offset")
    hashes = [found for _, found in log.execute(hashed).fetchall()]
    assert len(set(hashes)) == len(rows)


def test_sums_name_the_same_rows_in_any_order_and_wrap(log: Any) -> None:
    append(log, EVERYTHING, every_limit())
    batch = wired(log, EVERYTHING)
    hashes = [int(value) for value in batch[ROW_HASH].to_pylist()]
    total, xor = 0, 0
    for value in hashes:
        total, xor = (total + value) % 2**64, xor ^ value
    sums = range_sums_duckdb(f"({typed_rows_sql(EVERYTHING)})", hashed_columns(EVERYTHING), "_offset")
    rows, first, last, hash_sum, hash_xor = log.execute(sums).fetchall()[0]
    assert (first, last) == (1, len(hashes))
    assert Checksum(rows=rows, sum=hash_sum, xor=hash_xor) == Checksum(rows=len(hashes), sum=total, xor=xor)
    nothing = range_sums_duckdb(
        f"(select * from ({typed_rows_sql(EVERYTHING)}) where false)", hashed_columns(EVERYTHING), "_offset"
    )
    assert log.execute(nothing).fetchall() == [(0, None, None, 0, 0)]


def test_undeclared_changes_have_the_same_hashes_on_both_sides(clickhouse: Client, log: Any) -> None:
    clickhouse.command((MIGRATIONS / "clickhouse" / "0001_change_log.sql").read_text())
    schema = table_schema("anything", {"k": "INT"}, ["k"], schema_version=0)
    append(log, schema, ['{"k":1,"é":"\\u0000"}', {"k": 2}, None], ["c", "u", "d"], ["", "", "1"])
    log.execute("update change_log set key = null where log_offset = 2")
    batch = log.sql(generic_lane().batch_sql, params={"first": 1, "last": 9}).to_arrow_table()
    insert(clickhouse, "change_log", batch, GENERIC_ARROW_SCHEMA)
    ours = log.execute(row_hashes_duckdb("change_log", GENERIC_HASHED, "log_offset")).fetchall()
    held = clickhouse.query(row_hashes_clickhouse("change_log", GENERIC_HASHED, "log_offset")).result_rows
    assert [tuple(found) for found in held] == ours
    assert clickhouse.query("select * from change_log limit 0").column_names == tuple(GENERIC_ARROW_SCHEMA.names)


# ── what Arrow would do to ClickHouse in silence ──

T = table_schema("t", {"k": "INTEGER", "n": "SMALLINT", "d": "DECIMAL(9,2)", "at": "TIMESTAMP", "s": "VARCHAR"}, ["k"])


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("n", pa.array([2**15], pa.int32())),
        ("d", pa.array([Decimal("1.234")], pa.decimal128(9, 3))),
        ("d", pa.array([Decimal("12345678.90")], pa.decimal128(18, 2))),
        ("at", pa.array([1], pa.timestamp("ns"))),
        ("k", pa.array([None], pa.int32())),
        ("s", pa.array([b"\xff"], pa.binary())),
        ("_op", pa.array([None], pa.string())),
    ],
)
def test_a_batch_that_clickhouse_would_bend_is_refused_before_it_is_sent(
    log: Any, column: str, values: pa.Array
) -> None:
    batch = whole_batch(log)
    bent = batch.set_column(batch.column_names.index(column), pa.field(column, values.type), values)
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        conform(bent, arrow_schema(T))


def test_a_batch_that_lacks_a_column_or_has_one_too_many_is_refused(log: Any) -> None:
    batch = whole_batch(log)
    for wrong in (batch.drop_columns(["n"]), batch.append_column("extra", batch["n"])):
        with pytest.raises(ValueError, match=r"'(n|extra)'"):
            conform(wrong, arrow_schema(T))


def whole_batch(log: Any) -> pa.Table:
    append(log, T, [{"k": 1, "n": 2, "d": "1.50", "at": "2026-01-01T00:00:00Z", "s": "x"}])
    batch = wired(log, T).drop_columns([ROW_HASH])
    batch = batch.append_column("_pipeline", pa.array(["main"])).append_column("_send", pa.array([1], pa.uint64()))
    assert conform(batch, arrow_schema(T)).schema == arrow_schema(T)
    return batch


def test_sixteen_digits_of_a_hugeint_are_not_taken_for_its_bytes(clickhouse: Client, log: Any) -> None:
    schema = table_schema("wide", {"k": "HUGEINT", "u": "UHUGEINT"}, ["k"])
    create(clickhouse, schema)
    append(log, schema, ['{"k":1234567890123456,"u":1234567890123456}', '{"k":-123456789012345,"u":0}'])
    send(clickhouse, log, schema)
    assert clickhouse.query("select k, u from wide_log order by _offset").result_rows == [
        (1234567890123456, 1234567890123456),
        (-123456789012345, 0),
    ]


def test_a_null_for_a_key_column_is_an_error_in_clickhouse_too(clickhouse: Client, log: Any) -> None:
    create(clickhouse, T)
    batch = whole_batch(log)
    broken = batch.set_column(batch.column_names.index("k"), "k", pa.array([None], pa.int32()))
    with pytest.raises(DatabaseError):
        clickhouse.insert_arrow("t_log", broken, settings=INSERT_SETTINGS)
    assert clickhouse.command("select count() from t_log") == 0

"""DuckDB and ClickHouse side by side: the same values, the same hashes, the same current rows."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import clickhouse_connect
import duckdb
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from replicator.checksum import (
    GENERIC_HASHED,
    hashed_columns,
    range_sums_clickhouse,
    range_sums_duckdb,
    row_hashes_clickhouse,
    row_hashes_duckdb,
)
from replicator.column_types import ColumnType, Kind
from replicator.embedded.clickhouse import ClickHouse
from replicator.model import Checksum
from replicator.schema import TableSchema, compare, quote, table_schema
from replicator.sink import INSERT_SETTINGS
from replicator.sink_ddl import (
    alter_statements,
    create_statements,
    drift,
    drop_statements,
    expected_columns,
    expected_state_columns,
    state_check_sql,
)
from replicator.typed import check_sql, log_rows_sql, typed_rows_sql
from replicator.wire import GENERIC_ARROW_SCHEMA, ROW_HASH, arrow_schema, conform, generic_wire_sql, wire_sql

MIGRATIONS = Path(__file__).parents[2] / "migrations"
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


@pytest.fixture
def clickhouse(clickhouse_server: ClickHouse, clickhouse_database: str) -> Iterator[Client]:
    with clickhouse_connect.get_client(
        dsn=clickhouse_server.endpoint,
        username=clickhouse_server.user,
        password=clickhouse_server.password,
        database=clickhouse_database,
        autogenerate_session_id=False,
    ) as client:
        yield client


@pytest.fixture
def log() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB with an empty change_log."""
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute((MIGRATIONS / "duckdb" / "0001_log.sql").read_text())
        yield connection


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


# ── values ──


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
    schema = table_schema("anything", {"k": "INT"}, ["k"])
    append(log, schema, ['{"k":1,"é":"\\u0000"}', {"k": 2}, None], ["c", "u", "d"], ["", "", "1"])
    log.execute("update change_log set key = null where log_offset = 2")
    insert(clickhouse, "change_log", log.sql(generic_wire_sql("change_log")).to_arrow_table(), GENERIC_ARROW_SCHEMA)
    ours = log.execute(row_hashes_duckdb("change_log", GENERIC_HASHED, "log_offset")).fetchall()
    held = clickhouse.query(row_hashes_clickhouse("change_log", GENERIC_HASHED, "log_offset")).result_rows
    assert [tuple(found) for found in held] == ours
    found = dict(clickhouse.query(COLUMNS_OF, {"table": "change_log"}).result_rows)
    assert list(found) == GENERIC_ARROW_SCHEMA.names


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


# ── tables ──

COLUMNS_OF = "select name, type from system.columns where database = currentDatabase() and table = {table:String} order by position"


def shape(clickhouse: Client, table: str) -> dict[str, str]:
    return dict(clickhouse.query(COLUMNS_OF, {"table": table}).result_rows)


def test_the_tables_are_made_as_they_are_expected_and_may_be_made_again(clickhouse: Client) -> None:
    for _ in range(2):
        create(clickhouse, EVERYTHING)
    assert list(shape(clickhouse, "everything_log").items()) == list(expected_columns(EVERYTHING).items())
    assert list(shape(clickhouse, "everything_state").items()) == list(expected_state_columns(EVERYTHING).items())
    assert set(arrow_schema(EVERYTHING).names) == set(expected_columns(EVERYTHING))
    for statement in drop_statements(EVERYTHING) * 2:
        clickhouse.command(statement)
    assert clickhouse.command("select count() from system.tables where database = currentDatabase()") == 0


def test_a_table_that_drifted_is_described(clickhouse: Client) -> None:
    create(clickhouse, T)
    assert drift(expected_columns(T), shape(clickhouse, "t_log")) == []
    clickhouse.command("drop view t_feed")
    clickhouse.command("alter table t_log drop column d, add column mine String, modify column n Nullable(Int64)")
    found = drift(expected_columns(T), shape(clickhouse, "t_log"))
    assert [next(name for name in ("'d'", "'n'", "'mine'") if name in line) for line in found] == [
        "'d'",
        "'n'",
        "'mine'",
    ]


def test_a_retention_of_the_log_is_part_of_its_table(clickhouse: Client) -> None:
    for statement in create_statements(T, log_ttl_days=30):
        clickhouse.command(statement)
    assert "toIntervalDay(30)" in clickhouse.command("show create table t_log")


def current(clickhouse: Client) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in clickhouse.query("select k, s from t order by k").result_rows]


def test_current_rows_do_not_depend_on_the_order_of_arrival(clickhouse: Client, log: Any) -> None:
    create(clickhouse, T)
    changes = [
        ({"k": 1, "s": "old"}, "c"),
        ({"k": 1, "s": "new"}, "u"),
        ({"k": 2, "s": "gone"}, "c"),
        (None, "d"),
        ({"k": 3, "s": "first"}, "c"),
        (None, "d"),
        ({"k": 3, "s": "again"}, "c"),
    ]
    append(log, T, [payload for payload, _ in changes], [op for _, op in changes], ["", "", "", "2", "", "3", ""])
    for offset in (4, 7, 2, 6, 1, 3, 5):
        send(clickhouse, log, T, offset, offset)
        if offset == 6:
            clickhouse.command("optimize table t_state final")
    assert current(clickhouse) == [(1, "new"), (3, "again")]
    clickhouse.command("optimize table t_state final")
    send(clickhouse, log, T, 3, 3, send=2)  # a replay of what was deleted since
    assert current(clickhouse) == [(1, "new"), (3, "again")]
    clickhouse.command("set do_not_merge_across_partitions_select_final = 1")
    assert_equal_hashes(clickhouse, log, T)


def test_the_state_check_counts_keys_that_the_feed_left_behind(clickhouse: Client, log: Any) -> None:
    create(clickhouse, T)
    append(log, T, [{"k": 1, "s": "a"}, None, {"k": 2, "s": "b"}], ["c", "d", "c"], ["", "1", ""])
    send(clickhouse, log, T)
    where = {"pipeline": "main", "first": 1, "last": 3}
    assert clickhouse.query(state_check_sql(T), where).result_rows == [(0,)]
    clickhouse.command("delete from t_state where k = 1 and _is_deleted", settings={"mutations_sync": 1})
    assert clickhouse.query(state_check_sql(T), where).result_rows == [(1,)]
    clickhouse.command("truncate table t_state")
    assert clickhouse.query(state_check_sql(T), where).result_rows == [(2,)]


def test_an_identical_send_is_stored_once(clickhouse: Client, log: Any) -> None:
    create(clickhouse, T)
    append(log, T, [{"k": 1, "s": "a"}, {"k": 2, "s": "b"}])
    batch = wired(log, T).drop_columns([ROW_HASH])
    batch = batch.append_column("_pipeline", pa.repeat("main", 2)).append_column("_send", pa.array([1, 1], pa.uint64()))
    for _ in range(2):
        settings = INSERT_SETTINGS | {"insert_deduplication_token": "main/t/1-2/1"}
        clickhouse.insert_arrow("t_log", conform(batch, arrow_schema(T)), settings=settings)
    assert clickhouse.command("select count() from t_log") == 2
    assert clickhouse.command("select count() from t_state") == 2


# ── a table that grows ──

FIRST = table_schema(
    "t",
    {
        "k": "BIGINT",
        "n": "INTEGER",
        "d": "DECIMAL(9,2)",
        "f": "FLOAT",
        "e": "ENUM('a','b')",
        "q": "UTINYINT",
        "label": "ENUM('x')",
    },
    ["k"],
)
SECOND = table_schema(
    "t",
    {
        "k": "BIGINT",
        "added": "VARCHAR NOT NULL DEFAULT 'd'",
        "n": "BIGINT",
        "d": "DECIMAL(18,6)",
        "f": "DOUBLE",
        "e": "ENUM('a','b','c')",
        "q": "DECIMAL(5,1)",
        "label": "VARCHAR",
        "last": "TIMESTAMP_NS",
    },
    ["k"],
    schema_version=2,
)
OLD = {"k": 1, "n": -(2**31), "d": "1234567.89", "f": 0.1, "e": "b", "q": 255, "label": "x"}
NEW = {
    "k": 2,
    "n": 2**62,
    "d": "123456789012.345678",
    "f": 0.1,
    "e": "c",
    "q": "1.5",
    "label": "y",
    "last": "2026-01-01T00:00:00.123456789Z",
}


def test_a_table_grows_and_old_rows_keep_their_values_and_hashes(clickhouse: Client, log: Any) -> None:
    create(clickhouse, FIRST)
    append(log, FIRST, [OLD, {"k": 3}, None], ["c", "c", "d"], ["", "", "9"])
    send(clickhouse, log, FIRST)
    before = clickhouse.query("select * from t_log order by _offset").result_rows
    assert compare(FIRST, SECOND).refusals == ()
    for _ in range(2):
        for statement in alter_statements(FIRST, SECOND):
            clickhouse.command(statement)
    assert shape(clickhouse, "t_log") == expected_columns(SECOND)
    assert shape(clickhouse, "t_state") == expected_state_columns(SECOND)
    assert list(shape(clickhouse, "t_log")) == list(expected_columns(SECOND))
    append(log, SECOND, [NEW, {"k": 4}])
    send(clickhouse, log, SECOND, 4)
    for schema in (FIRST, SECOND):
        assert_equal_hashes(clickhouse, log, schema)
    assert len(before) == 3
    columns = ", ".join(quote(column.name) for column in SECOND.columns if column.name != "last")
    ours = log.execute(
        f"select {columns} from ({log_rows_sql([FIRST, SECOND])}) where _op <> 'd' order by k"
    ).fetchall()
    held = [tuple(found) for found in clickhouse.query(f"select {columns} from t order by k").result_rows]
    assert held == ours
    assert clickhouse.command("select toString(last) from t where k = 2") == "2026-01-01 00:00:00.123456789"


def test_rows_in_flight_and_replays_are_sent_under_the_schema_they_were_written_under(
    clickhouse: Client, log: Any
) -> None:
    create(clickhouse, FIRST)
    append(log, FIRST, [OLD, {"k": 3}])
    for statement in alter_statements(FIRST, SECOND):
        clickhouse.command(statement)
    assert wired(log, FIRST)[ROW_HASH] == wired(log, FIRST, table=SECOND)[ROW_HASH]
    send(clickhouse, log, FIRST, table=SECOND)
    assert_equal_hashes(clickhouse, log, FIRST)
    assert clickhouse.query("select n, d, added, last from t where k = 1").result_rows == [
        (-(2**31), Decimal("1234567.89"), None, None)
    ]

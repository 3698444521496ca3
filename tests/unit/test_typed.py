"""Typing in DuckDB: what fits becomes the exact value, what does not is named with its column and reason."""

from __future__ import annotations

import base64
import json
import math
import struct
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from replicator.column_types import ColumnType, Kind, parse_type
from replicator.default_value import default_problem
from replicator.schema import TableSchema, quote, table_schema
from replicator.typed import check_sql, log_rows_sql, misfit_count_sql, misfits_sql, typed_rows_sql

MISFIT = object()
ENUM = "ENUM('buy', 'sell', 'it''s', 'true', '1')"


@pytest.fixture
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


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


# ── every type against a reference in Python ──

digits = st.text("0123456789", min_size=1, max_size=22)
number = st.builds(
    lambda sign, whole, fraction, exponent: sign + str(int(whole)) + fraction + exponent,
    st.sampled_from(["", "", "-"]),
    digits,
    st.one_of(st.just(""), digits.map(lambda d: "." + d), st.just(".0"), st.just(".5")),
    st.one_of(
        st.just(""),
        st.just(""),
        st.builds(lambda e, n: e + str(n), st.sampled_from(["e", "E+", "e-"]), st.integers(0, 45)),
    ),
)
limits = st.sampled_from(
    [
        str(sign * 2**bits + near)
        for bits in (7, 8, 15, 16, 31, 32, 63, 64, 127, 128)
        for sign in (1, -1)
        for near in (-1, 0, 1)
    ]
)
odd = st.sampled_from(
    ["", " 1", "1 ", "+1", "1_000", "01", "1.", ".5", "0x1F", "1e", "-", "--1", "1e400", "1e-400", "1,5", "1\0", "\0"]
) | st.sampled_from(
    ["nan", "inf", "NaN", "Infinity", "-Infinity", "true", "TRUE", "t", "yes", "null", "[1]", "epoch", "infinity", "é"]
)
instant = st.datetimes(datetime(1899, 12, 30), datetime(2300, 1, 3)).map(lambda d: d.isoformat())
instant_text = st.builds(
    lambda text, separator, more, zone: text.replace("T", separator) + (more if "." in text else "") + zone,
    instant,
    st.sampled_from("TT "),
    st.sampled_from(["", "", "0", "000", "123", "1234"]),
    st.sampled_from(["", "Z", "Z", "+00:00", "+02:00", "-0530", "+14", "+99:00", "z", " UTC", "+05Z", " Z"]),
)
epoch = st.one_of(st.integers(0, 10**20), st.integers(10**11 - 2, 10**14 + 1), st.integers(-(10**14), 0)).map(str)
text = st.one_of(st.text(max_size=20), odd, number, st.sampled_from(["buy", "it's", "1", "{}", "[", "-", "a" * 200]))
by_kind = {
    Kind.INTEGER: st.one_of(number, limits, odd),
    Kind.DECIMAL: st.one_of(number, limits, odd),
    Kind.FLOAT: st.one_of(number, odd, st.floats().map(repr), st.sampled_from(["3.5e38", "1.8e308"])),
    Kind.BOOLEAN: odd,
    Kind.VARCHAR: text,
    Kind.BLOB: st.one_of(st.binary(max_size=9).map(lambda b: base64.b64encode(b).decode()), text),
    Kind.UUID: st.one_of(
        st.uuids().map(str), st.uuids().map(lambda u: str(u).upper()), st.uuids().map(lambda u: u.hex), odd
    ),
    Kind.DATE: st.one_of(
        st.dates(date(1899, 12, 30), date(2300, 1, 2)).map(str), odd, st.just("2021-02-29"), instant_text
    ),
    Kind.TIMESTAMP: st.one_of(
        instant_text, instant_text, epoch, odd, st.sampled_from(["2021-02-29T00:00:00Z", "2021-01-01"])
    ),
    Kind.JSON: text,
    Kind.ENUM: st.one_of(st.sampled_from(["buy", "sell", "it's", "true", "1", "Buy", ""]), text),
}


def is_number(value: str) -> bool:
    try:
        return not isinstance(json.loads(value, parse_constant=str), str | None)
    except ValueError:
        return False


def reference(kind: ColumnType, sent: str, quoted: bool) -> Any:
    """What a sent text means: the value, or MISFIT."""
    if kind.kind is Kind.JSON:
        return json.dumps(sent, ensure_ascii=False) if quoted else sent
    if kind.kind is Kind.TIMESTAMP:
        return instant_reference(kind, sent)
    if kind.kind in (Kind.VARCHAR, Kind.BLOB, Kind.ENUM) and not quoted:
        return MISFIT
    if default_problem(kind, sent) is not None or (not kind.signed and sent.startswith("-") and sent != "-0"):
        return MISFIT
    match kind.kind:
        case Kind.INTEGER:
            return int(Decimal(sent))
        case Kind.DECIMAL:
            with localcontext(prec=100):
                return Decimal(sent).quantize(Decimal(1).scaleb(-kind.scale))
        case Kind.FLOAT:
            value = float(sent)
            return value if kind.bits == 64 else struct.unpack("f", struct.pack("f", value))[0]
        case Kind.BOOLEAN:
            return sent == "true"
        case Kind.BLOB:
            return base64.b64decode(sent)
        case Kind.UUID:
            return uuid.UUID(sent)
        case Kind.DATE:
            return date.fromisoformat(sent)
    return sent


def instant_reference(kind: ColumnType, sent: str) -> Any:
    """Nanoseconds since the epoch."""
    if sent.removeprefix("-").isdecimal() and sent.isascii():
        if not 10**11 <= abs(int(sent)) < 10**14:
            return MISFIT
        nanoseconds = int(sent) * 10**6
    else:
        if default_problem(kind, sent) is not None:
            return MISFIT
        whole, _, rest = sent.partition(".")
        fraction = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        moment = datetime.fromisoformat(whole + rest[len(fraction) :])
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        nanoseconds = (since // timedelta(seconds=1)) * 10**9 + int(fraction[:9].ljust(9, "0") or 0)
    beyond = (
        2**63 - 1 if kind.scale == 9 else (datetime(2300, 1, 1) - datetime(1970, 1, 1)) // timedelta(seconds=1) * 10**9
    )
    return nanoseconds if -2_208_988_800 * 10**9 <= nanoseconds < beyond else MISFIT


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return math.isnan(found) if math.isnan(expected) else struct.pack("d", found) == struct.pack("d", expected)
    return type(found) is type(expected) and found == expected


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


@pytest.mark.parametrize("type_name", EVERY_TYPE)
def test_what_fits_is_the_exact_value_and_nothing_else_fits(type_name: str) -> None:
    kind = parse_type(type_name)
    schema = table_schema("t", {"k": "INT", "x": type_name}, ["k"])
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute("set timezone = 'America/New_York'")

        @settings(
            max_examples=6,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            phases=[Phase.generate],
        )
        @given(st.lists(st.tuples(by_kind[kind.kind], st.booleans()), min_size=30, max_size=60))
        def compare(values: list[tuple[str, bool]]) -> None:
            sent = [
                (value, True) if quoted or not is_number(value) else (value.strip(), False) for value, quoted in values
            ]
            payloads = [
                f'{{"k":{row},"x":{json.dumps(value, ensure_ascii=row % 2 == 0) if quoted else value}}}'
                for row, (value, quoted) in enumerate(sent)
            ]
            expected = [reference(kind, value, quoted) for value, quoted in sent]
            found = checked(database, schema, relation(payloads))
            assert [fits for fits, _ in found] == [value is not MISFIT for value in expected], payloads
            kept = [row for row, value in enumerate(expected) if value is not MISFIT]
            rows = typed(database, schema, relation([payloads[row] for row in kept]))
            for row, value in zip(kept, rows, strict=True):
                if kind.kind is Kind.JSON:
                    assert json.loads(value) == json.loads(expected[row]), payloads[row]
                else:
                    assert same(value, expected[row]), (payloads[row], value)

        compare()


def test_rounding_happens_only_where_the_column_asks_for_it(database: duckdb.DuckDBPyConnection) -> None:
    rounding = table_schema("t", {"k": "INT", "x": {"type": "DECIMAL(6,2)", "round": True}}, ["k"])
    strict = table_schema("t", {"k": "INT", "x": "DECIMAL(6,2)"}, ["k"])
    values = ["1.005", "-1.005", "1.0049999999999999999999999", "2.5e-3", "9999.994", "9999.995"]
    rows = relation([f'{{"k":1,"x":"{value}"}}' for value in values])
    assert not any(fits for fits, _ in checked(database, strict, rows))
    assert [fits for fits, _ in checked(database, rounding, rows)] == [True] * 5 + [False]
    expected = [Decimal(value).quantize(Decimal("0.01"), ROUND_HALF_UP) for value in values[:5]]
    assert typed(database, rounding, rows.slice(0, 5)) == expected


def test_a_number_keeps_every_digit_it_was_written_with(database: duckdb.DuckDBPyConnection) -> None:
    schema = table_schema("t", {"k": "INT", "x": "DECIMAL(38,20)", "j": "JSON"}, ["k"])
    rows = relation(['{"k":1,"x":123456789.12345678901234567890,"j":{"a": 0.1234567890123456789, "b":1.10}}'])
    assert typed(database, schema, rows) == [Decimal("123456789.12345678901234567890")]
    assert typed(database, schema, rows, "j") == ['{"a":0.1234567890123456789,"b":1.10}']


def test_a_number_with_an_exponent_is_exact(database: duckdb.DuckDBPyConnection) -> None:
    schema = table_schema("t", {"k": "INT", "x": "DECIMAL(9,2)"}, ["k"])
    rows = relation([f'{{"k":1,"x":{x}}}' for x in ("0.0000000774659e11", "774659000e-5", "7.74659E+3", "7746.59e0")])
    assert all(fits for fits, _ in checked(database, schema, rows))
    assert typed(database, schema, rows) == [Decimal("7746.59")] * 4


# ── whole changes ──

TRADES = table_schema(
    "trades",
    {"id": "VARCHAR", "price": "DECIMAL(18,6) NOT NULL", "qty": "BIGINT", "venue": "VARCHAR NOT NULL DEFAULT 'XNAS'"},
    ["id"],
)


@pytest.mark.parametrize(
    ("payload", "column", "reason"),
    [
        ("[1]", None, "not a JSON object"),
        ("null", None, "not a JSON object"),
        ("{", None, "not JSON"),
        (None, None, "no payload"),
        ('{"id":"a","price":1,"price":2}', None, "twice: price"),
        ('{"id":"a","price":1,"extra":1,"extra":1}', None, "twice: extra"),
        ('{"id":"a"}', "price", "is missing"),
        ('{"id":"a","price":null}', "price", "is null"),
        ('{"price":1}', "id", "is missing, but it belongs to the key"),
        ('{"id":null,"price":1}', "id", "is null, but it belongs to the key"),
        ('{"id":7,"price":1}', "id", "not a JSON string"),
        ('{"id":"a","price":"1.2345678"}', "price", '"1.2345678" has more decimals than DECIMAL(18,6)'),
        ('{"id":"a","price":"1e12"}', "price", "out of range"),
        ('{"id":"a","price":true}', "price", "not a number"),
        ('{"id":"a","price":1,"qty":1.5}', "qty", "not a whole number"),
        ('{"id":"a","price":1,"qty":9223372036854775808}', "qty", "out of range"),
        ('{"id":"a","price":1,"qty":{"a":1}}', "qty", "not a number"),
        ('{"id":"a","price":1,"venue":["x"]}', "venue", "not a JSON string"),
    ],
)
def test_a_misfit_is_named_with_its_column_and_reason(
    database: duckdb.DuckDBPyConnection, payload: str | None, column: str | None, reason: str
) -> None:
    found = reasons(database, TRADES, '{"id":"ok","price":1}', payload)
    assert [(row, name) for row, name, _ in found] == [(1, column)]
    assert reason in found[0][2]
    assert [fits for fits, _ in checked(database, TRADES, relation(['{"id":"ok","price":1}', payload]))] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("sent", "unit"),
    [("1767225600", "seconds"), ("1767225600000000", "microseconds"), ("1767225600000000000", "nanoseconds")],
)
def test_an_epoch_of_another_magnitude_is_refused_with_its_unit(
    database: duckdb.DuckDBPyConnection, sent: str, unit: str
) -> None:
    schema = table_schema("t", {"k": "INT", "at": "TIMESTAMP"}, ["k"])
    assert f"epoch {unit}" in reasons(database, schema, f'{{"k":1,"at":{sent}}}')[0][2]


def test_every_misfit_of_a_change_is_reported(database: duckdb.DuckDBPyConnection) -> None:
    found = reasons(database, TRADES, '{"id":1,"price":"x","qty":"y","qty":2}')
    assert [column for _, column, _ in found] == [None, "id", "price", "qty"]


def test_an_unknown_field_is_kept_or_refused_as_the_table_says(database: duckdb.DuckDBPyConnection) -> None:
    columns = {"id": "VARCHAR", "x": "INT"}
    rows = relation(['{"id":"a","y":1}', '{"id":"a","x":null}', '{"id":"a"}', '{"id":"a","X":1}'])
    keep, refuse = (table_schema("t", columns, ["id"], choice) for choice in ("keep", "reject"))
    assert all(fits for fits, _ in checked(database, keep, rows))
    assert [fits for fits, _ in checked(database, refuse, rows)] == [False, True, True, False]
    assert "has unknown fields: y" in reasons(database, refuse, '{"id":"a","y":1}')[0][2]


def test_a_delete_needs_its_key_and_nothing_else(database: duckdb.DuckDBPyConnection) -> None:
    rows = relation(
        [None, "{}", '{"id":"c"}', None, '{"id":"e","price":"nonsense"}'], "d", ["a", "b", None, None, None]
    )
    assert checked(database, TRADES, rows) == [(True, "a"), (True, "b"), (True, "c"), (False, None), (True, "e")]
    logged = relation([None, '{"id":"e","price":1}'], "d", ["a", "e"])
    assert typed(database, TRADES, logged, "id") == ["a", "e"]
    assert typed(database, TRADES, logged, "price") == [None, None]
    assert typed(database, TRADES, logged, "venue") == [None, None]


def test_a_key_of_several_columns_is_a_json_array_of_texts(database: duckdb.DuckDBPyConnection) -> None:
    schema = table_schema("t", {"a": "BIGINT", "b": "VARCHAR", "c": "TIMESTAMPTZ"}, ["b", "a", "c"])
    upsert = relation(['{"a":"1.0","b":"x\\"é","c":"2026-01-01T02:00:00+02:00"}'])
    [(fits, key)] = checked(database, schema, upsert)
    assert fits
    assert json.loads(str(key)) == ['x"é', "1", "2026-01-01 00:00:00+00"]
    assert checked(database, schema, relation([None], "d", [key])) == [(True, key)]
    assert typed(database, schema, relation([None], "d", [key]), "a") == [1]
    assert checked(database, schema, relation([None] * 3, "d", ["x", '["x"]', "[1,2"])) == [(False, None)] * 3


@pytest.mark.parametrize("type_name", [name for name in EVERY_TYPE if name not in ("FLOAT", "DOUBLE", "JSON")])
def test_a_canonical_key_names_the_same_row_again(database: duckdb.DuckDBPyConnection, type_name: str) -> None:
    sent = {
        Kind.BOOLEAN: "true",
        Kind.BLOB: "/w==",
        Kind.DATE: "2026-01-02",
        Kind.TIMESTAMP: "2026-01-02T03:04:05.678901Z",
    }
    sent |= {Kind.UUID: str(uuid.UUID(int=7)), Kind.ENUM: "it's", Kind.VARCHAR: "x", Kind.DECIMAL: "0"}
    schema = table_schema("t", {"x": type_name}, ["x"])
    value = sent.get(schema.columns[0].type.kind, "7")
    [(_, key)] = checked(database, schema, relation([json.dumps({"x": value})]))
    assert checked(database, schema, relation([None], "d", [key])) == [(True, key)]
    created, deleted = (
        typed(database, schema, rows) for rows in (relation([json.dumps({"x": value})]), relation([None], "d", [key]))
    )
    assert created == deleted


def test_a_default_stands_in_where_the_field_is_missing(database: duckdb.DuckDBPyConnection) -> None:
    schema = table_schema(
        "t",
        {
            "k": "INT",
            "x": "DECIMAL(5,2) DEFAULT 1.5",
            "y": "TIMESTAMP NOT NULL DEFAULT '2026-01-01T00:00:00Z'",
            "j": "JSON DEFAULT '[1]'",
        },
        ["k"],
    )
    rows = relation(['{"k":1}', '{"k":2,"x":null,"y":null,"j":null}', '{"k":3,"x":7,"y":"2027-01-01T00:00:00","j":{}}'])
    assert all(fits for fits, _ in checked(database, schema, rows))
    assert typed(database, schema, rows) == [Decimal("1.50"), None, Decimal("7.00")]
    new_year = [1_767_225_600 * 10**9, 1_767_225_600 * 10**9, 1_798_761_600 * 10**9]
    assert typed(database, schema, rows, "y") == new_year
    assert typed(database, schema, rows, "j") == ["[1]", None, "{}"]


def test_names_that_need_quoting_are_read_as_they_are(database: duckdb.DuckDBPyConnection) -> None:
    names = ['a"b', "a'b", "a/b~c", "é ü", "select", "$.x", "0", "a.b", "{0}"]
    schema = table_schema("t", {"k": "INT"} | dict.fromkeys(names, "VARCHAR"), ["k"], "reject")
    rows = relation([json.dumps({"k": 1} | {name: f"{row}" for row, name in enumerate(names)})])
    assert checked(database, schema, rows) == [(True, "1")]
    for row, name in enumerate(names):
        assert typed(database, schema, rows, name) == [str(row)]
        assert reasons(database, schema, json.dumps({"k": 1, name: 5}))[0][1] == name


def test_a_row_is_typed_under_the_version_it_was_written_under(database: duckdb.DuckDBPyConnection) -> None:
    first = table_schema(
        "t", {"k": "INT", "x": {"type": "DECIMAL(5,1)", "round": True}, "d": "INT NOT NULL DEFAULT 1"}, ["k"]
    )
    second = table_schema(
        "t", {"k": "INT", "x": "DECIMAL(9,3)", "d": "BIGINT DEFAULT 2", "new": "VARCHAR DEFAULT 'n'"}, ["k"]
    )
    database.register("changes", relation(['{"k":1,"x":"1.26"}', '{"k":2,"x":"1.26"}']))
    log = f"(select * replace (row_index::int + 1 as schema_version) from (select *, {LOG_COLUMNS} from changes))"
    query = log_rows_sql([first, second.at_version(2)], log)
    rows = database.execute(f'select k, x, d, "new" from ({query}) order by k').fetchall()
    assert rows == [(1, Decimal("1.300"), 1, None), (2, Decimal("1.260"), 2, "n")]
    assert str(database.execute(f"select typeof(d) from ({query})").fetchall()[0][0]) == "BIGINT"


def test_deep_nesting_and_long_values_are_typed(database: duckdb.DuckDBPyConnection) -> None:
    schema = table_schema("t", {"k": "INT", "x": "JSON", "v": "VARCHAR"}, ["k"])
    deep = "[" * 900 + "]" * 900
    rows = relation([f'{{"k":1,"x":{deep},"v":"{"y" * 1_000_000}"}}'])
    assert checked(database, schema, rows) == [(True, "1")]
    assert typed(database, schema, rows) == [deep]

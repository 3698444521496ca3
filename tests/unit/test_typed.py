"""Typing whole changes: misfits are named with column and reason, deletes need their key, versions stay apart."""

from __future__ import annotations

import json
import uuid
from decimal import Decimal

import duckdb
import pytest
from typed_room import EVERY_TYPE, LOG_COLUMNS, checked, reasons, relation, typed

from replicator.column_types import Kind
from replicator.schema import table_schema
from replicator.typed import log_rows_sql

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

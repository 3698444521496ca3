"""Schemas: types under three names, declarations with all their problems at once, and what may change."""

from __future__ import annotations

import duckdb
import pytest

from replicator.column_types import parse_type
from replicator.errors import ConfigError
from replicator.schema import (
    compare,
    definition,
    from_definition,
    quote,
    quote_clickhouse,
    table_name_problems,
    table_schema,
)


def trades(**columns: object):
    return table_schema("trades", {"trade_id": "VARCHAR", **columns}, ["trade_id"])


@pytest.mark.parametrize(
    ("text", "duckdb_name", "clickhouse_name"),
    [
        ("int", "INTEGER", "Int32"),
        ("NUMERIC(18, 6)", "DECIMAL(18,6)", "Decimal(18, 6)"),
        ("decimal", "DECIMAL(18,3)", "Decimal(18, 3)"),
        ("DECIMAL(38)", "DECIMAL(38,0)", "Decimal(38, 0)"),
        ("uhugeint", "UHUGEINT", "UInt128"),
        ("text", "VARCHAR", "String"),
        ("timestamp with time zone", "TIMESTAMPTZ", "DateTime64(6, 'UTC')"),
        ("TIMESTAMP_NS", "TIMESTAMP_NS", "DateTime64(9, 'UTC')"),
        ("DATE", "DATE", "Date32"),
        ("ENUM('a','it''s')", "ENUM('a', 'it''s')", r"Enum8('a' = 1, 'it\'s' = 2)"),
    ],
)
def test_a_type_and_its_aliases_have_one_name_on_each_side(text: str, duckdb_name: str, clickhouse_name: str) -> None:
    parsed = parse_type(text)
    assert (parsed.duckdb, parsed.clickhouse) == (duckdb_name, clickhouse_name)
    assert parse_type(parsed.duckdb) == parsed
    duckdb.connect().execute(f"select null::{parsed.duckdb}")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("TIME", "BIGINT"),
        ("INTERVAL", "BIGINT"),
        ("INTEGER[]", "JSON"),
        ("STRUCT(a INT)", "JSON"),
        ("MAP(VARCHAR, INT)", "JSON"),
        ("BIT", "BLOB"),
        ("TIMESTAMP_MS", "TIMESTAMP"),
        ("DECIMAL(39,2)", "1 to 38"),
        ("DECIMAL(5,6)", "0 to digits"),
        ("VARCHAR(10)", "length"),
        ("ENUM(a)", "single quotes"),
        ("ENUM('a','a')", "differ"),
        ("QUATERNION", "known are"),
        ("", "type name"),
    ],
)
def test_a_type_that_is_not_exact_on_both_sides_is_refused_with_the_remedy(text: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        parse_type(text)


def test_a_declaration_reports_every_problem_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        table_schema(
            "bad name",
            {
                "a": "TIME",
                "A": "INT",
                "_x": "INT",
                "p": "DECIMAL(4,2) DEFAULT 1.234",
                "n": {"typ": "INT"},
                "f": "DOUBLE",
            },
            ["missing", "f"],
            "ignore",
        )
    text = str(caught.value)
    for part in ("bad name", "'a'", "differ only in case", "'_x'", "1.234", "'typ'", "'missing'", "'f'", "ignore"):
        assert part in text, part


@pytest.mark.parametrize(
    ("declared", "not_null", "default"),
    [
        ("DECIMAL(18,6) NOT NULL DEFAULT 0", True, "0"),
        ("DECIMAL(18,6) default 0 not null", True, "0"),
        ("VARCHAR DEFAULT 'it''s not null'", False, "it's not null"),
        ("TIMESTAMP WITH TIME ZONE NOT NULL", True, None),
        ("ENUM('a','b') DEFAULT 'b'", False, "b"),
        ({"type": "BOOLEAN", "not_null": True, "default": False}, True, "false"),
        ({"type": "JSON", "default": {"a": [1]}}, False, '{"a":[1]}'),
        ("INT DEFAULT NULL", False, None),
    ],
)
def test_a_column_is_declared_as_text_or_as_a_table(declared: object, not_null: bool, default: str | None) -> None:
    column = trades(x=declared).columns[1]
    assert (column.not_null, column.default) == (not_null, default)


@pytest.mark.parametrize(
    "declared",
    [
        "INT DEFAULT now()",
        "TINYINT DEFAULT 128",
        "UUID DEFAULT 'x'",
        "DATE DEFAULT '1899-12-31'",
        "TIMESTAMP DEFAULT '2300-01-01 00:00:00'",
        "BLOB DEFAULT '*'",
        "ENUM('a') DEFAULT 'b'",
        "FLOAT DEFAULT 1e39",
        "BOOLEAN DEFAULT 1",
        "JSON DEFAULT '{'",
        "INT DEFAULT 1.5",
        {"type": "INT", "round": True},
        {"type": "INT", "not_null": "yes"},
    ],
)
def test_a_default_or_setting_that_does_not_fit_its_type_is_refused(declared: object) -> None:
    with pytest.raises(ConfigError):
        trades(x=declared)


def test_key_columns_are_not_null_and_keep_the_order_of_the_key() -> None:
    schema = table_schema("t", {"a": "INT", "b": "TEXT", "c": "INT"}, ["c", "a"])
    assert [column.name for column in schema.key_columns] == ["c", "a"]
    assert [column.not_null for column in schema.columns] == [True, False, True]


def test_tables_whose_three_names_collide_are_reported() -> None:
    assert table_name_problems(["trades", "orders"]) == []
    assert "Trades_Log" in table_name_problems(["trades", "Trades_Log"])[0]
    assert table_name_problems(["a", "a"])


def test_a_definition_survives_the_round_trip_through_text() -> None:
    schema = trades(
        p={"type": "DECIMAL(18,6)", "round": True, "not_null": True, "default": "1.5"},
        e="ENUM('it''s','ü')",
        j="JSON DEFAULT '{\"a\":1}'",
    )
    assert from_definition(definition(schema), 7) == schema.at_version(7)


def test_columns_are_added_and_types_widened() -> None:
    old = trades(a="INT", d="DECIMAL(10,2)", e="ENUM('x')", n="INT NOT NULL")
    new = trades(a="BIGINT", d="DECIMAL(14,4)", e="ENUM('x','y')", n="INT", added="VARCHAR")
    change = compare(old, new)
    assert not change.refusals
    assert [column.name for column in change.added] == ["added"]
    assert [column.name for column in change.widened] == ["a", "d", "e"]
    assert change.settings == ("column 'n': not_null = False",)
    assert compare(old, old).is_empty


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("BIGINT", "INT"),
        ("INT", "UBIGINT"),
        ("DECIMAL(10,2)", "DECIMAL(10,4)"),
        ("VARCHAR", "INT"),
        ("ENUM('a','b')", "ENUM('b','a')"),
        ("DOUBLE", "FLOAT"),
        ("INT", "INT NOT NULL"),
        ("BIGINT", "DECIMAL(18,0)"),
        ("TIMESTAMP", "TIMESTAMP_NS"),
    ],
)
def test_narrowing_is_refused_and_names_rebuild(before: str, after: str) -> None:
    change = compare(trades(x=before), trades(x=after))
    assert "rebuild trades" in change.refusals[0]


def test_removing_a_column_or_changing_the_key_is_refused_and_names_rebuild() -> None:
    old = trades(x="INT")
    new = table_schema("trades", {"trade_id": "TEXT", "y": "INT"}, ["trade_id", "y"])
    assert all("rebuild trades" in refusal for refusal in compare(old, new).refusals)
    assert len(compare(old, new).refusals) == 2


def test_an_identifier_is_quoted_for_each_side() -> None:
    assert quote('a"b') == '"a""b"'
    assert quote_clickhouse("a`b\\") == "`a\\`b\\\\`"

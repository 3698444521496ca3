"""Recognising payloads by their shape: whatever is recognised passes every check, unchanged and under the same key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from replicator.database import statement
from replicator.payload import strict_json
from replicator.schema import TableSchema, table_schema
from replicator.shape import canonical_keys, plain_objects
from replicator.typed import check_sql

COLUMNS = {
    "id": "VARCHAR",
    "price": "DECIMAL(18,6)",
    "ratio": "DECIMAL(4,4)",
    "tiny": "TINYINT",
    "quantity": "BIGINT",
    "huge": "UHUGEINT",
    "weight": "DOUBLE",
    "live": "BOOLEAN NOT NULL",
    "side": "ENUM('buy', 'sell')",
    "day": "DATE",
    "at": "TIMESTAMP",
    "at_ns": "TIMESTAMP_NS",
    "zoned": "TIMESTAMPTZ",
    "code": "UUID",
    "raw": "BLOB",
    "more": "JSON",
}
VALUES = [
    '"a"', '"é\u007f/"', '""', '"1"', "1", "-1", "0", "-0", '"-0"', "00", "1.0", "1.50", '"1.50"', "0.12345", '"0.1234"', '"0.12345"',
    "127", "128", "99", "-99", "999999999", "123456789.12345", "1234567890.123456", '"999999999999.999999"', '"1000000000000"',
    "123456789012345", "1234567890123456", "9007199254740993", '"9223372036854775807"', '"999999999999999999"', "1e5", "NaN", '"NaN"',
    "true", "false", "null", '"true"', '"buy"', '"hold"', '"2026-02-28"', '"2026-02-29"', '"2024-02-29"', '"2026-11-31"', '"2026-12-31"',
    '"1899-12-31"', '"1900-01-01"', '"2299-12-31"', '"2300-01-01"', '"2026-11-23T10:00:00Z"', '"2026-11-23 10:00:00.123456"',
    '"2026-11-23T10:00:00.1234567Z"', '"2026-11-23T10:00:00+00:00"', '"2026-11-23T10:00:00+02:00"', '"2026-11-23T24:00:00Z"', "1790000000000",
    "179000000000", "17900000000000", '"2261-12-31T23:59:59.999999999Z"', '"2199-12-31T23:59:59.999999999"', '"AAAA"', '"AAA="', '"AAA"', "{}", "[]",
    '{"a":1}', '{"a":{"b":1}}', "[1, 2]", '"a,1234567890123456"', '"123e4567-e89b-12d3-a456-426614174000"', '"\\u0041"', '"\\n"', "{", "", "1 ", "[1,]",
]  # fmt: skip
GOOD = {
    "id": '"a"', "price": '"1.5"', "tiny": "7", "live": "true", "side": '"buy"', "day": '"2026-11-23"', "raw": '"AAAA"', "more": "[]",
}  # fmt: skip
"""What a column takes; null is good for the others."""


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


def schema(key: Sequence[str] = ("id",), unknown: str = "keep", **columns: str) -> TableSchema:
    return table_schema("t", columns or COLUMNS, key, unknown)


def checked(
    database: duckdb.DuckDBPyConnection, table: TableSchema, changes: pa.Table
) -> list[tuple[bool, str | None, str | None]]:
    """Per row what the checks say: whether it fits, its key, its payload as it would be logged."""
    numbered = changes.append_column("row_index", pa.array(np.arange(changes.num_rows, dtype=np.int32)))
    database.register("decoded_changes", numbered)
    suspects = dict(database.execute(statement("admit/suspects")).fetchall())
    payloads: list[str | None] = changes["payload"].to_pylist()
    for row, reason in suspects.items():
        try:
            payloads[row] = None if reason else strict_json(payloads[row] or "")
        except ValueError:
            payloads[row] = None
    found = database.execute(f"select row_index, fits, key from ({check_sql(table, 'decoded_changes')})").fetchall()
    return [(fits, key, payloads[row]) for row, fits, key in sorted(found)]


def relation(rows: Sequence[tuple[str, str | None, str | None]]) -> pa.Table:
    op, key, payload = zip(*rows, strict=True)
    text = pa.string()
    return pa.table({"op": pa.array(op, text), "key": pa.array(key, text), "payload": pa.array(payload, text)})


def recognised(table: TableSchema, changes: pa.Table) -> list[str | None]:
    columns = [changes[name].combine_chunks() for name in ("op", "key", "payload")]
    return canonical_keys(table, *columns).to_pylist()


def agree(database: duckdb.DuckDBPyConnection, table: TableSchema, *batches: pa.Table) -> int:
    """How many rows were recognised, each of which the checks pass unchanged under the same key.

    What is recognised depends on the batch, what is checked does not: so all are checked at once, which is cheap.
    """
    keys = [key for changes in batches for key in recognised(table, changes)]
    changes = pa.concat_tables(batches)
    for key, payload, (fits, expected, logged) in zip(
        keys, changes["payload"].to_pylist(), checked(database, table, changes), strict=True
    ):
        if key is not None:
            assert (fits, expected, logged) == (True, key, payload), payload
    return sum(key is not None for key in keys)


@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "id"])
def test_a_recognised_value_fits_its_column(database: duckdb.DuckDBPyConnection, column: str) -> None:
    table = schema(id="VARCHAR", **{column: COLUMNS[column]})
    usual = GOOD.get(column, "null")
    rows = [("u", None, f'{{"id":"k{i}","{column}":{usual}}}') for i in range(16)]
    rows += [("u", None, f'{{"id":"a","{column}":{value}}}') for value in VALUES for _ in range(2)]
    # sampled anew: every value stands in some sample
    assert agree(database, table, *(relation(rows[start : start + 16]) for start in range(0, len(rows), 16))) >= 16


@pytest.mark.parametrize("value", VALUES)
def test_a_recognised_plain_object_is_no_suspect(database: duckdb.DuckDBPyConnection, value: str) -> None:
    payloads = [f'{{"a":{value}}}', f'{{"a": 1, "b": {value}}}', value]
    changes = relation([("u", None, payload) for payload in payloads])
    database.register(
        "decoded_changes", changes.append_column("row_index", pa.array(np.arange(len(payloads), dtype=np.int32)))
    )
    suspects = {row for row, _ in database.execute(statement("admit/suspects")).fetchall()}
    for row, plain in enumerate(plain_objects(changes["payload"].combine_chunks()).to_pylist()):
        if plain:
            assert row not in suspects or strict_json(payloads[row]) == payloads[row]
            assert isinstance(json.loads(payloads[row]), dict)


_members = st.lists(st.sampled_from([*COLUMNS, "unknown"]), max_size=6)
_separators = st.sampled_from([(",", ":"), (", ", ": "), (" ,", " :")])


@st.composite
def payloads(draw: st.DrawFn) -> list[str]:
    names = [*draw(st.permutations(["id", "live", "tiny"])), *draw(_members)]
    comma, colon = draw(_separators)
    values = st.tuples(*(st.sampled_from([GOOD.get(name, "null")] * 4 * len(VALUES) + VALUES) for name in names))
    rows = draw(st.lists(values, min_size=1, max_size=8))
    return [
        "{" + comma.join(f'"{name}"{colon}{value}' for name, value in zip(names, row, strict=True)) + "}"
        for row in rows
    ]


def drawn() -> list[pa.Table]:
    """Two batches as written here and 25 drawn, checked all at once: planning the checks is what takes the time."""
    batches: list[pa.Table] = []

    @settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
    @given(st.lists(payloads(), min_size=1, max_size=3), st.sampled_from("cud"), st.sampled_from([None, "k", "1"]))
    @example([['{"id":"a","live":true}', '{"id":"b","live":null}']], "u", None)
    @example([['{"id":"a","live":true,"id":"b"}', '{"id":"a","live":true,"tiny":1,"tiny":2}']], "u", None)
    def draw(groups: list[list[str]], op: str, key: str | None) -> None:
        batches.append(relation([(op, key, payload) for group in groups for payload in group]))

    draw()
    assert len(batches) >= 27
    return batches


def test_recognised_changes_pass_every_check_under_the_same_key(database: duckdb.DuckDBPyConnection) -> None:
    batches = drawn()
    for table in (schema(), schema(("id",), "reject"), schema(("tiny", "id"), tiny="TINYINT", id="VARCHAR")):
        assert agree(database, table, *batches) > 2


def test_a_composite_key_is_the_json_array_that_the_checks_make(database: duckdb.DuckDBPyConnection) -> None:
    table = schema(("b", "a"), a="VARCHAR", b="INTEGER", c="VARCHAR")
    rows = [
        ("u", None, f'{{"c":"x","a":"{text}","b":{i}}}') for i, text in enumerate(["é/", "\u007f", "", "[1]", "👍"])
    ]
    rows.append(("u", None, '{"c":"x","a":"s","b":"77"}'))
    assert agree(database, table, relation(rows)) == len(rows)


def test_deletes_are_recognised_with_and_without_a_payload(database: duckdb.DuckDBPyConnection) -> None:
    table = schema(id="VARCHAR", n="INTEGER NOT NULL")
    rows = [
        ("d", "k1", None),
        ("d", None, '{"id":"k2"}'),
        ("d", "k9", '{"id":"k3"}'),
        ("u", None, '{"id":"k4"}'),
        ("u", "k5", None),
        ("d", None, None),
        ("u", None, '{"id":"k6","n":5}'),
    ]
    changes = relation(rows)
    agree(database, table, changes)
    assert recognised(table, changes) == ["k1", "k2", "k3", None, None, None, "k6"]


def test_the_usual_trade_is_recognised_in_several_shapes() -> None:
    table = schema(id="VARCHAR", price="DECIMAL(18,6)", at="TIMESTAMP")
    shapes = [
        '{{"id":"T{0}","price":"189.25","at":"2026-11-23T10:00:00.{0:06d}Z"}}',
        '{{"at": 1790000000000, "id": "T{0}", "price": 189.25}}',
        '{{"id":"T{0}","price":null,"at":null,"note":["x", 1]}}',
    ]
    changes = relation([("c", None, shapes[i % 3].format(i)) for i in range(3000)])
    assert recognised(table, changes) == [f"T{i}" for i in range(3000)]


def test_a_number_within_a_text_leaves_the_payload_as_it_was_sent() -> None:
    text = '{"note": "a,1234567890123456", "n": 12345678901234567}'
    assert strict_json(text) == '{"note":"a,1234567890123456","n":"12345678901234567"}'
    assert strict_json(text[:-1].replace("12345678901234567", "1") + "}") == '{"note": "a,1234567890123456", "n": 1}'


def test_a_rare_form_is_recognised_too() -> None:
    """Or the few deletes among many updates would have every small read typed in DuckDB."""
    table = schema(id="VARCHAR", n="INTEGER NOT NULL")
    rows = [("u", None, f'{{"id":"T{i}","n":{i}}}') for i in range(1000)]
    rows[7], rows[501], rows[702] = (("d", None, f) for f in ('{"id":"R"}', '{"note":1,"id":"S"}', '{"id":"U"}'))
    found = recognised(table, relation(rows))
    assert None not in found and [found[i] for i in (7, 501, 702)] == ["R", "S", "U"]

"""Values and Arrow columns as text: exact, canonical, or refused by name."""

from __future__ import annotations

import datetime as dt
import enum
import json
import math
from decimal import Decimal
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from replicator.canonical import canonical_object, json_column, json_objects, key_column, key_text, plain_column
from replicator.errors import UsageError

PARIS = dt.timezone(dt.timedelta(hours=1))
UUID_1 = UUID("12345678-1234-5678-1234-567812345678")


class Side(enum.StrEnum):
    BUY = "buy"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        (2**53, "9007199254740992"),
        (2**53 + 1, '"9007199254740993"'),
        (-(2**53) - 1, '"-9007199254740993"'),
        (10**40, '"1' + "0" * 40 + '"'),
        (0.1, "0.1"),
        (-0.0, "-0.0"),
        (math.nan, '"NaN"'),
        (math.inf, '"Infinity"'),
        (-math.inf, '"-Infinity"'),
        (Decimal("1.10"), '"1.10"'),
        (Decimal("1E+3"), '"1000"'),
        (Decimal("0E-9"), '"0.000000000"'),
        (Decimal("NaN"), '"NaN"'),
        (Decimal("-Infinity"), '"-Infinity"'),
        (Decimal("0.12345678901234567890123456789012345678"), '"0.12345678901234567890123456789012345678"'),
        (Decimal("1E-500"), '"1E-500"'),
        (dt.datetime(2021, 1, 8, 1, 0, 0, 278000, PARIS), '"2021-01-08T00:00:00.278000Z"'),
        (dt.datetime(2021, 1, 8, tzinfo=dt.UTC), '"2021-01-08T00:00:00Z"'),
        (dt.date(2021, 1, 8), '"2021-01-08"'),
        (dt.time(9, 30, 0, 1), '"09:30:00.000001"'),
        (UUID_1, '"12345678-1234-5678-1234-567812345678"'),
        (b"\x00\xff", '"AP8="'),
        (bytearray(b"ab"), '"YWI="'),
        (Side.BUY, '"buy"'),
        ('né\x00\n"\\', '"né\\u0000\\n\\"\\\\"'),
        (np.int64(2**60), '"1152921504606846976"'),
        (np.float64("nan"), '"NaN"'),
        (np.float32(0.5), "0.5"),
        (np.bool_(True), "true"),
        ({"a": [Decimal("1.0"), {"b": None}], "c": (1, 2)}, '{"a":["1.0",{"b":null}],"c":[1,2]}'),
    ],
)
def test_a_value_is_written_exactly(value, text):
    assert canonical_object({"x": value}, "trades") == ('{"x":' + text + "}").encode()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({1, 2}, "set"),
        (object(), "object"),
        (dt.datetime(2021, 1, 8), "no time zone"),
        (np.datetime64("2021-01-08"), "no time zone"),
        (dt.timedelta(1), "timedelta"),
        (Decimal("sNaN"), "signalling"),
        ("a\ud800b", "lone surrogate"),
        (["ok", "\udfff"], r"price\[1\]"),
        ({"deep": {1: 2}}, r"price\.deep"),
        ({"\ud800": 1}, "lone surrogate"),
        pytest.param(1 << 100_000, "bits", id="long"),
        pytest.param({1 << 100_000}, "set", id="unprintable"),
    ],
)
def test_what_has_no_exact_text_is_refused_by_name(value, names):
    with pytest.raises(UsageError, match=names) as caught:
        canonical_object({"ok": 1, "price": value}, "trades")
    assert "trades.price" in str(caught.value)
    assert caught.value.hint


def test_a_value_within_itself_is_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(UsageError, match="within itself"):
        canonical_object({"x": loop}, "trades")


def test_a_long_value_is_shortened_in_the_error():
    with pytest.raises(UsageError) as caught:
        canonical_object({"x": {"y" * 10_000}}, "trades")
    assert len(str(caught.value)) < 300


def test_a_key_is_its_text_or_a_json_array():
    assert key_text(["T1"], "k") == "T1"
    assert key_text([7], "k") == "7"
    assert key_text([Decimal("1.50")], "k") == "1.50"
    assert key_text(["a,b", 7, 2**60], "k") == '["a,b",7,"1152921504606846976"]'
    for bad in ([], [None], ["a", None]):
        with pytest.raises(UsageError, match="is no key"):
            key_text(bad, "k")


COLUMNS = [
    (pa.array([1, -(2**53), 2**53 + 1, None], pa.int64()), ["1", str(-(2**53)), f'"{2**53 + 1}"', "null"]),
    (pa.array([2**64 - 1], pa.uint64()), [f'"{2**64 - 1}"']),
    (pa.array([255, None], pa.uint8()), ["255", "null"]),
    (pa.array([0.1, math.nan, math.inf, -math.inf, None]), ["0.1", '"NaN"', '"Infinity"', '"-Infinity"', "null"]),
    (pa.array([0.1], pa.float32()), ["0.10000000149011612"]),
    (pa.array([Decimal("1.20"), Decimal("0.00"), None]), ['"1.20"', '"0.00"', "null"]),
    (pa.array([Decimal("0.000000012")], pa.decimal128(38, 9)), ['"0.000000012"']),
    (pa.array([Decimal("1200000")], pa.decimal128(10, -3)), ['"1200000"']),
    (pa.array(["a", 'q"\\\n\x00é', None, ""]), ['"a"', '"q\\"\\\\\\n\\u0000é"', "null", '""']),
    (pa.array(["a", "b", "a"]).dictionary_encode(), ['"a"', '"b"', '"a"']),
    (pa.array(["a"], pa.large_string()), ['"a"']),
    (pa.array(["a"], pa.string_view()), ['"a"']),
    (pa.array([True, None]), ["true", "null"]),
    (pa.array([1610064000278, None], pa.timestamp("ms", "UTC")), ['"2021-01-08T00:00:00.278Z"', "null"]),
    (pa.array([1610064000278], pa.timestamp("ms", "Europe/Paris")), ['"2021-01-08T00:00:00.278Z"']),
    (pa.array([1], pa.timestamp("ns")), ['"1970-01-01T00:00:00.000000001"']),
    (pa.array([18635], pa.date32()), ['"2021-01-08"']),
    (pa.array([1], pa.time64("us")), ['"00:00:00.000001"']),
    (pa.array([b"\x00\xff", None]), ['"AP8="', "null"]),
    (pa.array([b"ab"], pa.binary(2)), ['"YWI="']),
    (pa.array([UUID_1.bytes, None], pa.binary(16)).cast(pa.uuid()), [f'"{UUID_1}"', "null"]),
    (pa.array(['{"a":1}', '"x\\n"', "1.50", None], pa.json_()), ['{"a":1}', '"x\\n"', "1.50", "null"]),
    (pa.nulls(2), ["null", "null"]),
    (pa.array([[1, None], [], None]), ["[1,null]", "[]", "null"]),
    (pa.array([[1, 2]], pa.list_(pa.int64(), 2)), ["[1,2]"]),
    (pa.array([{"a": 1, "b": ["x"]}, None, {"a": None}]), ['{"a":1,"b":["x"]}', "null", '{"a":null,"b":null}']),
    (pa.array([[("k", Decimal("1.5"))], None], pa.map_("string", pa.decimal128(3, 1))), ['{"k":"1.5"}', "null"]),
]


@pytest.mark.parametrize(("column", "texts"), COLUMNS, ids=[str(column.type) for column, _ in COLUMNS])
def test_an_arrow_column_is_written_exactly(column, texts):
    assert json_column(column, "x").to_pylist() == texts
    for text in texts:
        json.loads(text)


@pytest.mark.parametrize(("column", "texts"), COLUMNS, ids=[str(column.type) for column, _ in COLUMNS])
def test_an_arrow_column_is_written_alike_when_sliced(column, texts):
    padded = pa.concat_arrays([column, column]).slice(len(column))
    assert json_column(padded, "x").to_pylist() == texts


@pytest.mark.parametrize(("column", "texts"), COLUMNS, ids=[str(column.type) for column, _ in COLUMNS])
def test_plain_text_is_the_json_text_without_its_quotes(column, texts):
    expected = [None if text == "null" else json.loads(text) if text.startswith('"') else text for text in texts]
    assert plain_column(column, "x").to_pylist() == expected


def test_columns_and_rows_have_the_same_canonical_text():
    row = {"id": 2**60, "price": Decimal("1.50"), "at": dt.datetime(2021, 1, 8, 0, 0, 0, 5, dt.UTC), "note": 'a"b'}
    columns = {name: pa.array([value]) for name, value in row.items()}
    assert json_objects(columns, 1).to_pylist() == [canonical_object(row, "t").decode()]
    names = ["id", "price", "at"]
    assert key_column(columns, names).to_pylist() == [key_text([row[name] for name in names], "k")]


def test_rows_without_columns_are_empty_objects():
    assert json_objects({}, 2).to_pylist() == ["{}", "{}"]


def test_a_null_in_a_key_column_makes_a_null_key():
    columns = {"a": pa.array(["x", None]), "b": pa.array([1, 2])}
    assert key_column(columns, ["a"]).to_pylist() == ["x", None]
    assert key_column(columns, ["a", "b"]).to_pylist() == ['["x",1]', None]


def test_an_arrow_type_without_a_text_is_refused_by_name():
    with pytest.raises(UsageError, match=r"column held.*duration"):
        json_column(pa.array([1], pa.duration("us")), "held")

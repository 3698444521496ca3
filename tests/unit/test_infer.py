"""What `infer` proposes must hold every value it was shown."""

from __future__ import annotations

import json

import pytest
import tomli
from attrs import evolve
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typed_room import reasons

from replicator.infer import Sample, gather, key_candidates, parse_payload, propose
from replicator.schema import table_schema


def sample(*payloads: str) -> Sample:
    rows = [parse_payload(p) for p in payloads]
    return Sample(stream="s", table="t", payloads=rows, rejected=0, entries=len(rows))


def proposed(*payloads: str) -> dict:
    return tomli.loads(propose(sample(*payloads)))["tables"][0]


@pytest.mark.parametrize(
    ("values", "type_name"),
    [
        (["1", "2"], "INTEGER"),
        (["1", "3000000000"], "BIGINT"),
        (["9223372036854775808"], "HUGEINT"),
        ([f'"{"1" * 45}"'], "VARCHAR"),
        (["189.25", "7"], "DECIMAL(18,2)"),
        (["12345678901234.5678"], "DECIMAL(38,4)"),
        (["1e3", "0.5"], "DOUBLE"),
        (["true", "false"], "BOOLEAN"),
        (['"2026-01-01T10:00:00Z"'], "TIMESTAMP"),
        (['"2026-01-01T10:00:00.123456789Z"'], "TIMESTAMP_NS"),
        (['"2026-01-01"'], "DATE"),
        (['"0b9f5b1c-6f5f-4b57-a5b5-0d7e1c1f0a11"'], "UUID"),
        (['{"a":1}', "[1]"], "JSON"),
        (['"AAPL"', '"1"'], "VARCHAR"),
        (['"AAPL"', "1"], "JSON"),  # VARCHAR takes no number
        (['"AAPL"', "true"], "JSON"),
        (["0.5", '"NaN"', '"-Infinity"'], "DOUBLE"),
        (['"NaN"'], "VARCHAR"),
        (['"12345678901234567890.123456789012345678901"'], "VARCHAR"),  # no decimal has the room, no double the digits
        (["1e400", "1.5"], "JSON"),
        (['"2026-02-30"'], "VARCHAR"),
        (['"1899-12-31"'], "VARCHAR"),
        (['"2026-01-01T25:00:00Z"'], "VARCHAR"),
        (['"2026-01-01T10:00:00+99:00"'], "VARCHAR"),
        (['"9999-12-31T23:59:59Z"'], "VARCHAR"),
        (['"2026-01-01T10:00:00.123456789Z"', '"2290-01-01T00:00:00Z"'], "VARCHAR"),
    ],
)
def test_a_type_is_proposed_that_holds_every_value(values, type_name, database):
    payloads = [f'{{"id":{i},"x":{value}}}' for i, value in enumerate(values)]
    columns = proposed(*payloads)["columns"]
    assert columns["x"].removesuffix(" NOT NULL") == type_name
    assert reasons(database, table_schema("t", columns, ["id"]), *payloads) == []


TEXTS = st.one_of(
    st.from_regex(r"-?[0-9]{1,25}(\.[0-9]{1,22})?([eE]-?[0-9]{1,3})?", fullmatch=True),
    st.from_regex(r"[12][0-9]{3}-[01][0-9]-[0-3][0-9]", fullmatch=True),
    st.from_regex(
        r"[12][0-9]{3}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9](:[0-6][0-9](\.[0-9]{1,9})?)?(Z|[+-][01][0-9](:?[0-5][0-9])?)?",
        fullmatch=True,
    ),
    st.sampled_from(["true", "false", "NaN", "Infinity", "", "0", "-0", "x", "1900-01-01", "2299-12-31"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.one_of(TEXTS, st.booleans(), st.integers(), st.floats(allow_nan=False)), min_size=1, max_size=3))
def test_whatever_a_column_holds_fits_the_type_that_is_proposed(database, values):
    payloads = [json.dumps({"id": i, "x": value}) for i, value in enumerate(values)]
    assume(not any("Infinity," in p or p.endswith("Infinity}") for p in payloads))
    columns = proposed(*payloads)["columns"]
    assert reasons(database, table_schema("t", columns, ["id"]), *payloads) == [], columns


def test_the_key_is_a_column_every_change_has_and_an_id_by_name_comes_first():
    payloads = ['{"symbol":"A","trade_id":"T1","side":"b"}', '{"symbol":"B","trade_id":"T2","side":null}']
    assert proposed(*payloads)["key"] == ["trade_id"]
    assert key_candidates(gather(sample(*payloads)), 2) == ["trade_id", "symbol"]


def test_a_column_that_was_null_or_absent_is_not_declared_not_null():
    columns = proposed('{"id":1,"a":1,"b":null}', '{"id":2,"b":2}')["columns"]
    assert columns == {"id": "BIGINT", "a": "INTEGER", "b": "INTEGER"}


def test_a_key_has_room_to_grow_as_it_cannot_be_widened_later():
    assert proposed('{"id":1,"n":1}')["columns"] == {"id": "BIGINT", "n": "INTEGER NOT NULL"}


def test_what_cannot_be_a_column_is_a_comment_with_its_reason():
    payload = '{"_id":"a","ID":"b","id":"c","":1,"x":{"a":1}}'
    assert proposed(payload)["columns"] == {"ID": "VARCHAR", "x": "JSON NOT NULL"}
    text = propose(sample(payload))
    assert '# id = "VARCHAR NOT NULL"' in text and 'differs from "ID" only in case' in text
    assert '{\\"a\\": \\"1\\"}' in text, "an example is JSON"


@pytest.mark.parametrize(
    ("stream", "name"), [("orders:eu", "orders_eu"), ("7up", "t_7up"), ("ü", "t__"), ("trades", "trades")]
)
def test_a_table_is_proposed_under_a_name_that_it_can_have(stream, name):
    table = tomli.loads(propose(evolve(sample('{"id":1}'), stream=stream, table=stream)))["tables"][0]
    assert (table["name"], table["stream"]) == (name, stream)
    assert table_schema(table["name"], table["columns"], table["key"])


def test_hostile_names_and_values_stay_inside_their_strings():
    name = 'x"] \n[evil'
    text = propose(sample(json.dumps({"id": 1, name: "a\n# b"})))
    assert list(tomli.loads(text)["tables"][0]["columns"]) == ["id"]
    assert [line for line in text.splitlines() if "evil" in line] == [text.splitlines()[-1]]
    assert text.splitlines()[-1].startswith("# ")


@pytest.mark.parametrize("text", ["\x7f", "\x00", "\x85", "\u2028", "😀", '"', "\\"])
def test_whatever_stands_in_names_and_values_is_toml(text):
    names = [f"k{text}", f"j{text}"]
    rows = [json.dumps(dict.fromkeys(names, f"{text}{n}")) for n in range(3)]
    toml = propose(evolve(sample(*rows), stream=f"s{text}", table=f"t{text}"))
    [table] = tomli.loads(toml)["tables"]
    assert (table["stream"], table["name"]) == (f"s{text}", "t_")
    assert set(table["columns"]) == set(), "none is a plain name"
    assert set(table["key"]) <= set(names)


def test_a_stream_without_a_single_change_is_an_error():
    with pytest.raises(ValueError, match="holds no decodable change"):
        propose(sample())


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.lists(st.fixed_dictionaries({"id": st.integers(0, 9)}, optional={"a": scalars, "b": scalars}), min_size=1))
def test_every_proposal_is_a_schema_that_loads(rows):
    text = propose(sample(*[json.dumps(row) for row in rows]))
    table = tomli.loads(text)["tables"][0]
    assert table_schema("t", table["columns"], table["key"]).key == ("id",)

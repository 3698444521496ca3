"""What `infer` proposes must hold every value it was shown."""

from __future__ import annotations

import json

import pytest
import tomli
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

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
        (["1" * 45], "VARCHAR"),
        (["189.25", "7"], "DECIMAL(18,2)"),
        (["12345678901234.5678"], "DECIMAL(38,4)"),
        (["1e3", "0.5"], "DOUBLE"),
        (["true", "false"], "BOOLEAN"),
        (['"2026-01-01T10:00:00Z"'], "TIMESTAMP"),
        (['"2026-01-01T10:00:00.123456789Z"'], "TIMESTAMP_NS"),
        (['"2026-01-01"'], "DATE"),
        (['"0b9f5b1c-6f5f-4b57-a5b5-0d7e1c1f0a11"'], "UUID"),
        (['{"a":1}', "[1]"], "JSON"),
        (['"AAPL"', "1"], "VARCHAR"),
    ],
)
def test_a_type_is_proposed_that_holds_every_value(values, type_name):
    columns = proposed(*[f'{{"id":{i},"x":{value}}}' for i, value in enumerate(values)])["columns"]
    assert columns["x"].removesuffix(" NOT NULL") == type_name


def test_the_key_is_a_column_every_change_has_and_an_id_by_name_comes_first():
    payloads = ['{"symbol":"A","trade_id":"T1","side":"b"}', '{"symbol":"B","trade_id":"T2","side":null}']
    assert proposed(*payloads)["key"] == ["trade_id"]
    assert key_candidates(gather(sample(*payloads)), 2) == ["trade_id", "symbol"]


def test_a_column_that_was_null_or_absent_is_not_declared_not_null():
    columns = proposed('{"id":1,"a":1,"b":null}', '{"id":2,"b":2}')["columns"]
    assert columns == {"id": "INTEGER", "a": "INTEGER", "b": "INTEGER"}


def test_hostile_names_and_values_stay_inside_their_strings():
    name = 'x"] \n[evil'
    text = propose(sample(json.dumps({"id": 1, name: "a\n# b"})))
    assert tomli.loads(text)["tables"][0]["columns"][name] == "VARCHAR NOT NULL"


@pytest.mark.parametrize("text", ["\x7f", "\x00", "\x85", "\u2028", "😀", '"', "\\"])
def test_whatever_stands_in_names_and_values_is_toml(text):
    names = [f"k{text}", f"j{text}"]
    rows = [json.dumps(dict.fromkeys(names, f"{text}{n}")) for n in range(3)]
    toml = propose(evolve(sample(*rows), stream=f"s{text}", table=f"t{text}"))
    [table] = tomli.loads(toml)["tables"]
    assert (table["stream"], table["name"]) == (f"s{text}", f"t{text}") and set(table["columns"]) == set(names)
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

"""What may enter the log, where no table is declared: JSON objects, with keys where they are needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_decode import arrow, decoded

from replicator.admit import Admission, Admitted
from replicator.catalog import Catalog
from replicator.config import TableConfig
from replicator.database import Database, DatabaseOptions
from replicator.decode import Decoded
from replicator.decode_parts import unpack_raw

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations" / "duckdb"


@pytest.fixture(scope="module")
def admission(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admission]:
    path = tmp_path_factory.mktemp("admit") / "log.duckdb"
    database = Database.open(DatabaseOptions(path=path, threads=1, memory_mb=256))
    database.migrate(MIGRATIONS)
    yield Admission(session=database.session(), catalog=Catalog.open(database, [], []))
    database.close()


def admit(admission: Admission, *payloads: str) -> Admitted:
    return admission.admit(decoded(*({"data": payload} for payload in payloads)))


GOOD = '{"good":1}'


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("{not json", "not JSON"),
        ("", "not JSON"),
        ("   ", "not JSON"),
        ('{"a":1', "not JSON"),
        ("[1,2]", "array"),
        ('"text"', "varchar"),
        ("1", "not an object"),
        ("null", "null"),
        ('{"a":NaN}', "NaN"),
        ('{"a":nan}', "JSON"),
        ('{"a":Infinity}', "Infinity"),
        ('{"a":-inf}', "JSON"),
        ('{"a":1,}', "JSON"),
        ('{"a":[1,2,]}', "JSON"),
        ('{"a":1}x', "JSON"),
        ('{"a":1}{"b":2}', "JSON"),
        ("{'a':1}", "JSON"),
        ('{a:1}', "JSON"),
        ('{"a":0x10}', "JSON"),
        ('{"a":+1}', "JSON"),
        ('{"a":.5}', "JSON"),
        ('{"a":1.}', "JSON"),
        ('{"a":01}', "JSON"),
        ('{"a":1 /* c */}', "JSON"),
        ('// c\n{"a":1}', "JSON"),
        ('{"a":"\x00"}', "JSON"),
        ('{"a":"\n"}', "JSON"),
        ('{"a":"\\x41"}', "JSON"),
        ('{"a":"\\ud800"}', "JSON"),
        ('\ufeff{"a":1}', "JSON"),
        ('{"a":tru}', "JSON"),
        ('{"a":1}\x00', "JSON"),
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_rejected_and_its_neighbours_are_not(
    admission: Admission, payload: str, reason: str
) -> None:
    found = admit(admission, GOOD, payload, GOOD)
    assert found.changes["entry_index"].to_pylist() == [0, 2]
    assert found.rejections["entry_index"].to_pylist() == [1]
    assert reason in found.rejections["reason"][0].as_py()
    assert unpack_raw(found.rejections["raw"][0].as_py()) == [b"data", payload.encode()]


@pytest.mark.parametrize(
    "payload",
    ["{}", '{"a":{"b":[1,{"c":null}]}}', '{"a":"\\u0000\\n"}', '{"a":"\\ud83d\\ude00"}', '{ "a" : -0.5e-3 }', '{"":1}'],
)
def test_json_objects_are_logged_as_they_came(admission: Admission, payload: str) -> None:
    assert admit(admission, payload).changes["payload"].to_pylist() == [payload]


def test_long_numbers_become_strings_each_in_its_own_row(admission: Admission) -> None:
    found = admit(admission, '{"a":12345678901234567890}', GOOD, "[]", '{"a":1.2345678901234567890}')
    assert found.changes["payload"].to_pylist() == [
        '{"a":"12345678901234567890"}',
        GOOD,
        '{"a":"1.2345678901234567890"}',
    ]
    assert found.rejections["entry_index"].to_pylist() == [2]


@pytest.mark.parametrize("depth", [500, 2_000, 100_000])
@pytest.mark.parametrize("inner", ["1", "12345678901234567890"])
def test_deep_nesting_stops_nothing(admission: Admission, depth: int, inner: str) -> None:
    deep = '{"a":' + "[" * depth + inner + "]" * depth + "}"
    found = admit(admission, GOOD, deep, GOOD)
    assert found.changes.num_rows + found.rejections.num_rows == 3
    assert {0, 2} <= set(found.changes["entry_index"].to_pylist())


def test_a_payload_of_fifty_megabytes_is_logged(admission: Admission) -> None:
    big = '{"a":"%s"}' % ("x" * 50_000_000)
    found = admit(admission, GOOD, big)
    assert found.changes.num_rows == 2


def test_a_delete_without_a_key_is_rejected_and_one_with_a_payload_is_not(admission: Admission) -> None:
    found = admission.admit(decoded({"op": "d", "key": "K"}, {"op": "d", "data": '{"id":1}'}, {"op": "d"}))
    assert found.changes["entry_index"].to_pylist() == [0, 1]
    assert "key" in found.rejections["reason"][0].as_py()


def test_one_row_of_a_batch_is_rejected_with_its_own_bytes_also_when_it_is_the_last_one_left(
    admission: Admission,
) -> None:
    """The other row was rejected by decoding: the raw bytes of this one must not be those of the whole entry."""
    orders = TableConfig(name="trades", stream="trades", key=("n",), columns={"n": "TINYINT"})
    typed = evolve(admission, catalog=Catalog.open(admission.session.database, [orders], ["trades"]))
    batch = arrow(pa.table({"_op": ["u", "?"], "n": [1000, 2]}))
    found = typed.admit(decoded({"batch": batch}))
    raws = [unpack_raw(raw) for raw in found.rejections["raw"].to_pylist()]
    assert found.changes.num_rows == 0
    assert [raw[:2] for raw in raws] == [[b"data", b'{"n":1000}'], [b"data", b'{"n":2}']]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(data=st.data())
def test_whatever_is_admitted_is_json_by_the_standard(admission: Admission, data: st.DataObject) -> None:
    """Mutated JSON: what DuckDB lets pass and RFC 8259 does not is the trap."""
    seed = data.draw(
        st.sampled_from(
            ['{"a":[1,-2.5e3,true,null,"x\\n"],"b":{"c":""}}', '{"k":12345678901234567890}', '{"a":[[],{}]}']
        )
    )
    at = data.draw(st.integers(0, len(seed)))
    piece = data.draw(
        st.sampled_from(
            [",", "]", "}", "[", "{", '"', "\\", "NaN", "Infinity", "-", "+", ".", "e", "0", "1", "\t", "\x00", "\x1f",
             "/**/", "//\n", "'", "\\ud800", "\\u0000", "\ufeff", "nan", "inf", " ", "tRue", "\\'", "\\v"]
        )
    )  # fmt: skip
    drop = data.draw(st.integers(0, 2))
    payload = seed[:at] + piece + seed[at + drop :]
    found = admit(admission, payload)
    assert found.changes.num_rows + found.rejections.num_rows == 1
    for kept in found.changes["payload"].to_pylist():
        assert isinstance(json.loads(kept, parse_constant=refuse), dict)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} was admitted")


# ── a large payload, little memory ──


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admission]:
    """A declared table in 64 MB of memory."""
    database = Database.open(DatabaseOptions(path=tmp_path_factory.mktemp("cramped") / "l", threads=1, memory_mb=64))
    database.migrate(MIGRATIONS)
    table = TableConfig(name="trades", stream="trades", key=("id",), columns={"id": "BIGINT", "note": "VARCHAR"})
    yield Admission(session=database.session(), catalog=Catalog.open(database, [table], []))
    database.close()


def orders(*notes: str) -> Decoded:
    return decoded(*({"data": json.dumps({"id": place, "note": note})} for place, note in enumerate(notes)))


def test_a_payload_that_memory_does_not_allow_is_kept_aside_and_the_rest_goes_on(cramped: Admission) -> None:
    found = cramped.admit(orders("a", "x" * 50_000_000, "b"))
    assert found.changes["key"].to_pylist() == ["0", "2"]
    (rejection,) = found.rejections.to_pylist()
    assert "50000021 bytes, over the 2097152 that [performance] cache_size_mb = 64 allows" in rejection["reason"]
    assert len(rejection["raw"]) > 50_000_000

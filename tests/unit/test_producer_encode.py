"""What the producer writes: single entries and whole columns say the same, and `decode` reads both back."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from uuid import UUID

import hiredis
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replicator import encode
from replicator.decode import StreamRead, decode
from replicator.encode import BatchControls, Change
from replicator.errors import UsageError
from replicator.model import Op
from replicator.rows import batch_of_rows

XADD = [b"XADD", b"trades", b"*"]
ROWS = [
    {"id": "T1", "price": Decimal("189.250"), "n": 2**60, "ok": True, "at": dt.datetime(2021, 1, 8, tzinfo=dt.UTC)},
    {"id": 'T"2\n', "price": Decimal("-0.001"), "n": -1, "ok": False, "at": dt.datetime(1969, 1, 1, tzinfo=dt.UTC)},
    {"id": "é\x00", "price": None, "n": None, "ok": None, "at": None},
]
CONTROLS = BatchControls(where="trades", key_columns=["id"], id_prefix="x", at="1610064000278", schema_tag="v1")


def commands(packed: bytes) -> list[list[bytes]]:
    """Packed commands as Redis's own parser reads them."""
    reader = hiredis.Reader()
    reader.feed(packed)
    found = []
    while (each := reader.gets()) is not False:
        found.append(each)
    return found


def read_back(fields: Sequence[Sequence[bytes]], stream: str = "trades") -> list[dict]:
    ids = [b"%d-0" % (place + 1) for place in range(len(fields))]
    decoded = decode(StreamRead(stream=stream, stream_epoch=0, ids=ids, fields=fields), {})
    assert decoded.rejections.to_pylist() == []
    return decoded.changes.to_pylist()


def flattened(fields: Mapping[str, bytes]) -> list[bytes]:
    return [part for name, value in fields.items() for part in (name.encode(), value)]


def column_commands(columns: encode.Columns, rows: int) -> list[list[bytes]]:
    packed = encode.pack_columns(XADD, columns, rows)
    return commands(b"".join(piece for piece, _ in encode.cut(packed, 2, 1 << 20)))


def change(row: Mapping, **more) -> Change:
    about = {"where": "trades", "op": Op.UPDATE, "at": "1610064000278", "event_id": "x-0", "schema_tag": "v1"}
    return Change(row=row, **{**about, **more})


@pytest.mark.parametrize("encoding", ["json", "flat"])
def test_columns_are_written_as_single_entries_are(encoding):
    many = {"json": encode.json_columns, "flat": encode.flat_columns}[encoding]
    one = {"json": encode.json_entry, "flat": encode.flat_entry}[encoding]
    written = column_commands(many(batch_of_rows(ROWS, "trades"), CONTROLS), len(ROWS))
    for place, (row, got) in enumerate(zip(ROWS, written, strict=True)):
        fields = one(change(row, key=row["id"], event_id=f"x-{place}"))
        expected = commands(encode.pack_entry(XADD, fields))[0]
        pairs, wanted = (dict(zip(each[3::2], each[4::2], strict=True)) for each in (got, expected))
        assert {name: _same_instant(value) for name, value in pairs.items()} == {
            name: _same_instant(value) for name, value in wanted.items()
        }


def _same_instant(value: bytes) -> bytes:
    """A column of instants has as many digits as its unit; a single one only those it needs."""
    return value.replace(b":00.000000Z", b":00Z")


@pytest.mark.parametrize("encoding", ["json", "flat", "arrow"])
def test_what_is_written_is_read_back(encoding):
    batch = batch_of_rows(ROWS, "trades")
    if encoding == "arrow":
        blob = encode.ipc_stream(encode.arrow_batch(batch, CONTROLS), "zstd")
        changes = read_back([flattened(encode.arrow_fields(blob, CONTROLS))])
    else:
        many = {"json": encode.json_columns, "flat": encode.flat_columns}[encoding]
        changes = read_back([each[3:] for each in column_commands(many(batch, CONTROLS), len(ROWS))])
    for place, (got, row) in enumerate(zip(changes, ROWS, strict=True)):
        assert (got["op"], got["key"], got["event_id"]) == ("u", row["id"], f"x-{place}")
        assert (got["producer_schema"], got["event_at"].isoformat()) == ("v1", "2021-01-08T00:00:00.278000")
        values = json.loads(got["payload"])
        assert values["id"] == row["id"]
        if row["price"] is None:
            assert {name for name, value in values.items() if value is not None} == {"id"}
            continue
        assert Decimal(str(values["price"])) == row["price"]
        assert int(values["n"]) == row["n"]
        assert dt.datetime.fromisoformat(values["at"]) == row["at"]
        assert values["ok"] in (row["ok"], str(row["ok"]).lower())


@pytest.mark.parametrize("encoding", ["json", "flat"])
def test_a_delete_with_only_its_key_is_read_back(encoding):
    deleted = change({}, op=Op.DELETE, key="T1")
    fields = {"json": encode.json_entry, "flat": encode.flat_entry}[encoding](deleted)
    (got,) = read_back([flattened(fields)])
    assert (got["op"], got["key"], got["event_id"]) == ("d", "T1", "x-0")


def test_a_shared_stream_names_the_table():
    (got,) = read_back([flattened(encode.json_entry(change({"a": 1}, table="orders")))], stream="all")
    assert got["table_name"] == "orders"


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(max_size=20),
    st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12),
    st.datetimes(timezones=st.just(dt.UTC)),
    st.dates(),
    st.uuids(),
    st.lists(st.integers(0, 5), max_size=3),
)


@example([{"a": "NaN"}, {"a": "sNaN"}])
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), values, min_size=1), min_size=1, max_size=5))
def test_rows_keep_every_value_through_json_and_arrow(rows):
    """Arrow columns and single rows give the same values, whatever mixture a column holds."""
    batch = batch_of_rows(rows, "t")
    by_column = encode.json_columns(batch, BatchControls(where="t"))["data"].to_pylist()
    with pa.ipc.open_stream(encode.ipc_stream(batch, None)) as reader:
        received = reader.read_next_batch()
    through_arrow = encode.json_columns(received, BatchControls(where="t"))["data"].to_pylist()
    for row, text, arrow in zip(rows, by_column, through_arrow, strict=True):
        single = json.loads(encode.json_entry(change(row))["data"])
        wanted = {name: _comparable(single.get(name)) for name in batch.schema.names}
        assert {name: _comparable(value) for name, value in json.loads(text).items()} == wanted
        assert {name: _comparable(value) for name, value in json.loads(arrow).items()} == wanted


def _comparable(value):
    """Numbers by value and instants by instant: the texts may have more zeros."""
    if isinstance(value, str):
        for read in (lambda text: dt.datetime.fromisoformat(text) if text[-1:] == "Z" else Decimal(text), Decimal):
            try:
                found = read(value)
            except (ValueError, ArithmeticError):
                continue
            return value if isinstance(found, Decimal) and found.is_nan() else found
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def test_an_arrow_column_of_rows_is_typed_where_all_its_values_agree():
    row = {"s": "x", "i": 1, "f": 0.5, "b": True, "d": Decimal("1.50"), "y": b"\x00", "u": UUID(int=1)}
    types = {field.name: str(field.type) for field in batch_of_rows([row, {}], "t").schema}
    assert types == {
        "s": "string", "i": "int64", "f": "double", "b": "bool", "d": "decimal128(3, 2)", "y": "binary", "u": "string",
    }  # fmt: skip


def test_a_column_that_only_later_rows_have_is_kept():
    assert batch_of_rows([{"a": 1}, {"b": 2}], "t").to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": 2}]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([{"a": 1}, "row"], r"t\[1\]"),
        ([{"a": 1}, {"a": {1}}], r"t\.a\[1\].*set"),
        ([{1: 2}], "no column name"),
        ([{"a": dt.datetime(2021, 1, 8)}], "no time zone"),
        ([{"a": "\ud800"}], "lone surrogate"),
    ],
)
def test_rows_that_cannot_be_columns_are_refused_by_name(rows, names):
    with pytest.raises(UsageError, match=names):
        batch_of_rows(rows, "t")


@pytest.mark.parametrize("name", ["data", "batch", "_op", "_key", "_ts", "_id", "_table"])
def test_a_column_that_reads_as_something_else_when_flat_is_refused(name):
    with pytest.raises(UsageError, match=name):
        encode.flat_entry(change({name: "x"}))
    if name not in encode.ROW_CONTROLS:
        with pytest.raises(UsageError, match=name):
            encode.flat_columns(batch_of_rows([{name: "x"}], "t"), BatchControls(where="t"))


def test_control_columns_of_a_batch_become_controls():
    batch = batch_of_rows([{"a": 1, "_op": "d", "_key": "k", "_id": "e1", "_ts": 1610064000278}], "t")
    (got,) = read_back([each[3:] for each in column_commands(encode.json_columns(batch, BatchControls(where="t")), 1)])
    assert (got["op"], got["key"], got["event_id"], got["payload"]) == ("d", "k", "e1", '{"a":1}')
    assert got["event_at"].isoformat() == "2021-01-08T00:00:00.278000"


@pytest.mark.parametrize("make", [encode.json_columns, encode.flat_columns, encode.arrow_batch])
def test_bad_batches_are_refused_by_name(make):
    rows = batch_of_rows([{"a": 1, "b": None}], "trades")
    with pytest.raises(UsageError, match="no key column 'z'"):
        make(rows, BatchControls(where="trades", key_columns=["z"]))
    with pytest.raises(UsageError, match=r"row 40 has no key \(a, b\)"):
        make(rows, BatchControls(where="trades", key_columns=["a", "b"], first_row=40))
    with pytest.raises(UsageError, match="op 'x'"):
        make(batch_of_rows([{"a": 1, "_op": "x"}], "trades"), BatchControls(where="trades"))
    twice = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(UsageError, match="stands twice"):
        make(twice, BatchControls(where="trades"))


def test_an_arrow_batch_of_controls_alone_is_refused():
    with pytest.raises(UsageError, match="no columns of its own"):
        encode.arrow_batch(batch_of_rows([{"_key": "k"}], "t"), BatchControls(where="t"))


def test_a_batch_is_cut_by_rows_and_by_bytes():
    tall = pa.RecordBatch.from_arrays([pa.array(range(250_001))], names=["a"])
    assert [part.num_rows for part in encode.bounded(tall, 1 << 30)] == [100_000, 100_000, 50_001]
    wide = pa.RecordBatch.from_arrays([pa.array(["x" * 1000] * 1000)], names=["a"])
    parts = list(encode.bounded(wide, 100_000))
    assert sum(part.num_rows for part in parts) == 1000
    assert all(part.nbytes < 200_000 for part in parts)
    uneven = pa.RecordBatch.from_arrays([pa.array(["x"] * 999 + ["y" * 1_000_000])], names=["a"])
    parts = list(encode.bounded(uneven, 100_000))
    assert sum(part.num_rows for part in parts) == 1000


def test_packed_columns_are_cut_at_either_limit_and_never_within_an_entry():
    packed = encode.pack_columns(XADD, {"data": pa.array(["x" * size for size in (1, 1, 5000, 1, 1)])}, 5)
    pieces = list(encode.cut(packed, 2, 1000))
    assert [entries for _, entries in pieces] == [2, 1, 2]
    assert [len(commands(piece)) for piece, _ in pieces] == [2, 1, 2]
    sliced = list(encode.cut(packed.slice(1, 3), 10, 1 << 20))
    assert [len(each[4]) for each in commands(sliced[0][0])] == [1, 5000, 1]


def test_a_row_of_nulls_is_refused_where_null_is_a_field_left_out():
    with pytest.raises(UsageError, match="without a value"):
        encode.flat_entry(change({"a": None}))
    assert encode.flat_entry(change({}, op=Op.DELETE, key="k"))["_key"] == b"k"
    rows = [{"a": 1, "b": None}, {"a": None, "b": 2}, {"a": None, "b": None}]
    assert encode.flat_columns(batch_of_rows(rows[:2], "t"), BatchControls(where="t"))
    with pytest.raises(UsageError, match="row 7: a row without a value"):
        encode.flat_columns(batch_of_rows(rows, "t"), BatchControls(where="t", first_row=5))


def test_a_trace_goes_with_its_change():
    assert encode.json_entry(change({}, traceparent="00-a-b-01"))["traceparent"] == b"00-a-b-01"
    assert encode.flat_entry(change({"a": 1}, traceparent="00-a-b-01"))["_traceparent"] == b"00-a-b-01"

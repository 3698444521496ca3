"""Entries to changes or rejections: every encoding, every bad input, nothing dropped, the order kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from replicator.decode import PAYLOAD_BYTES_MAX, Decoded, StreamRead, decode
from replicator.decode_parts import pack_raw, time_microseconds, unpack_raw

Entry = dict[bytes | str, bytes | str] | None


def read(*entries: Entry) -> StreamRead:
    fields = [
        None
        if entry is None
        else [part if isinstance(part, bytes) else part.encode() for pair in entry.items() for part in pair]
        for entry in entries
    ]
    return StreamRead(
        stream="trades", stream_epoch=1, ids=[b"%d-0" % (i + 1) for i in range(len(entries))], fields=fields
    )


def decoded(*entries: Entry, encoding: str = "auto") -> Decoded:
    return decode(read(*entries), {} if encoding == "auto" else {"trades": encoding})


def reasons(found: Decoded) -> list[str]:
    return found.rejections["reason"].to_pylist()


def payloads(found: Decoded) -> list[object]:
    return [None if text is None else json.loads(text) for text in found.changes["payload"].to_pylist()]


def arrow(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def all_accounted_for(found: Decoded) -> None:
    """Every entry is a change or a rejection, never both for the same row, and the raw bytes are kept."""
    indexes = set(found.changes["entry_index"].to_pylist()) | set(found.rejections["entry_index"].to_pylist())
    assert indexes == set(range(len(found.read.ids)))
    places = [*zip(found.changes["entry_index"].to_pylist(), found.changes["entry_row"].to_pylist(), strict=True)]
    assert places == sorted(set(places))
    rejected = set(
        zip(found.rejections["entry_index"].to_pylist(), found.rejections["entry_row"].to_pylist(), strict=True)
    )
    assert not rejected & set(places)
    for raw in found.rejections["raw"].to_pylist():
        unpack_raw(raw)


# ── json ──


def test_a_json_entry_is_a_change_with_its_controls() -> None:
    found = decoded(
        {"data": '{"a":1}', "op": "c", "key": "K", "ts": "1763895600123", "id": "I", "v": "7", "table": "orders"}
    )
    row = found.changes.to_pylist()[0]
    assert (row["table_name"], row["op"], row["key"], row["event_id"], row["producer_schema"]) == (
        "orders", "c", "K", "I", "7",
    )  # fmt: skip
    assert row["event_at"] == datetime(2025, 11, 23, 11, 0, 0, 123000)
    assert (row["stream"], row["entry_id"], row["entry_row"]) == ("trades", "1-0", 0)


def test_an_update_is_the_default_and_the_stream_names_the_table() -> None:
    row = decoded({"data": "{}"}).changes.to_pylist()[0]
    assert (row["op"], row["table_name"], row["event_at"]) == ("u", "trades", None)


def test_a_delete_needs_only_its_key() -> None:
    row = decoded({"op": "d", "key": "K"}).changes.to_pylist()[0]
    assert (row["op"], row["key"], row["payload"]) == ("d", "K", None)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (None, "no fields"),
        ({}, "no fields"),
        ({"op": "u", "key": "K"}, "no `data`"),
        ({"op": "d"}, "no `data`"),
        ({"data": "{}", "op": "x"}, "op 'x' is none of"),
        ({"data": "{}", "op": ""}, "op '' is none of"),
        ({"data": "{}", "op": "create"}, "op 'create'"),
        ({"data": b"\xff\xfe\x00garbage"}, "'data' is not UTF-8 (byte 0)"),
        ({"data": "{}", "key": b"a\x80"}, "'key' is not UTF-8 (byte 1)"),
        ({"data": b"{\"a\":\"\xed\xa0\x80\"}"}, "not UTF-8"),
        ({"data": "{}", "ts": "yesterday"}, "neither epoch milliseconds nor ISO 8601"),
        ({"data": "{}", "ts": "1763895600"}, "seconds"),
        ({"data": "{}", "ts": "1763895600123456"}, "microseconds"),
        ({"data": "{}", "ts": "1763895600123456789"}, "nanoseconds"),
        ({"data": "{}", "ts": "--176389560012"}, "neither epoch"),
        ({"data": "{}", "ts": ""}, "neither epoch"),
        ({"data": "{}", "ts": "2025-11-23T10:00:00.123456789Z"}, "nanoseconds"),
        ({"data": "{}", "ts": "2025-11-23T10:00:00,123456789Z"}, "nanoseconds"),
        ({"data": "{}", "ts": "2025-02-30T10:00:00Z"}, "neither epoch"),
        ({b"\xff": "1", "b": "2"}, "not UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_is_rejected_with_its_reason_and_its_bytes(entry: Entry, reason: str) -> None:
    good: Entry = {"data": '{"good":1}'}
    found = decoded(good, entry, good)
    assert len(reasons(found)) == 1
    assert reason in reasons(found)[0]
    assert found.rejections["entry_id"].to_pylist() == ["2-0"]
    assert found.rejections["raw"].to_pylist() == [pack_raw(found.read.fields[1])]
    assert found.changes["entry_id"].to_pylist() == ["1-0", "3-0"]
    all_accounted_for(found)


def test_a_field_named_twice_is_rejected() -> None:
    twice = evolve(read({"data": "{}"}), fields=[[b"data", b"{}", b"data", b"{}"]])
    assert "twice" in reasons(decode(twice, {}))[0]


def test_a_payload_beyond_the_bound_is_rejected_and_fifty_megabytes_are_not() -> None:
    big = '{"a":"%s"}' % ("x" * 50_000_000)
    too_big = '{"a":"%s"}' % ("x" * PAYLOAD_BYTES_MAX)
    found = decoded({"data": big}, {"data": too_big}, {"data": "{}"})
    assert found.changes["entry_id"].to_pylist() == ["1-0", "3-0"]
    assert "bytes" in reasons(found)[0]


def test_nul_stays_in_keys_and_ids() -> None:
    row = decoded({"data": "{}", "key": "a\0b", "id": "\0"}).changes.to_pylist()[0]
    assert (row["key"], row["event_id"]) == ("a\0b", "\0")


def test_an_override_to_json_rejects_other_fields() -> None:
    assert "unknown field 'price'" in reasons(decoded({"data": "{}", "price": "1"}, encoding="json"))[0]


# ── flat ──


def test_a_flat_entry_is_its_fields_as_texts() -> None:
    found = decoded(
        {"trade_id": "T1", "price": "189.25", "note": 'a "b" \\ \x01 é \0', "_op": "c", "_ts": "1763895600123"}
    )
    assert payloads(found) == [{"trade_id": "T1", "price": "189.25", "note": 'a "b" \\ \x01 é \0'}]
    assert found.changes["op"].to_pylist() == ["c"]


def test_a_flat_delete_may_be_its_key_alone() -> None:
    assert decoded({"_op": "d", "_key": "K"}).changes["key"].to_pylist() == ["K"]


def test_mixed_shapes_keep_the_order_of_reading() -> None:
    entries: Sequence[Entry] = [
        {"data": '{"n":0}'},
        {"n": "1", "_op": "c"},
        {"data": '{"n":2}', "key": "K"},
        {"op": "?", "data": "{}"},
        {"batch": arrow(pa.table({"n": [4, 40]}))},
        {"n": "5", "_op": "c"},
        None,
        {"data": '{"n":7}'},
    ]
    found = decoded(*entries)
    assert [int(row["n"]) for row in payloads(found)] == [0, 1, 2, 4, 40, 5, 7]  # type: ignore[index]
    assert found.rejections["entry_index"].to_pylist() == [3, 6]
    all_accounted_for(found)


# ── times ──


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1763895600123", 1763895600123000),
        ("2025-11-23T11:00:00.123Z", 1763895600123000),
        ("2025-11-23T13:00:00.123456+02:00", 1763895600123456),
        ("2025-11-23T11:00:00,123456", 1763895600123456),
        ("2025-11-23", 1763856000000000),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("0001-01-01T00:00:00+14:00", -62135647200000000),
    ],
)
def test_times_are_exact(text: str, expected: int) -> None:
    assert time_microseconds(text) == expected


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_a_reason(text: str) -> None:
    try:
        time_microseconds(text)
    except ValueError as error:
        assert "ts " in str(error)


# ── raw bytes ──


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_raw_bytes_come_back(parts: list[bytes]) -> None:
    assert unpack_raw(pack_raw(parts)) == parts


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.dictionaries(
                st.sampled_from([b"data", b"op", b"key", b"ts", b"id", b"batch", b"x", b"_op", b"\xff", b"table"]),
                st.one_of(st.binary(max_size=8), st.sampled_from([b"{}", b"u", b"d", b"1763895600123"])),
                max_size=4,
            ),
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(["auto", "json", "flat", "arrow"]),
)
def test_whatever_comes_is_accounted_for(entries: list[Entry], encoding: str) -> None:
    all_accounted_for(decoded(*entries, encoding=encoding))

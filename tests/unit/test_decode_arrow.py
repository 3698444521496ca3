"""The arrow encoding: many changes in one entry, exact, and whatever is wrong with it is kept with a reason."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from test_decode import all_accounted_for, arrow, decoded, payloads, read, reasons

from replicator.decode import decode
from replicator.decode_parts import unpack_raw


def test_each_row_is_a_change_with_its_own_controls() -> None:
    table = pa.table(
        {"n": [1, 2, 3], "_op": ["c", None, "d"], "_key": ["a", "b", None], "_id": ["x", None, "z"],
         "_ts": pa.array([1763895600123, None, 1763895600124], pa.int64())}
    )  # fmt: skip
    rows = decoded({"batch": arrow(table), "op": "r"}).changes.to_pylist()
    assert [(r["op"], r["key"], r["event_id"], r["entry_row"]) for r in rows] == [
        ("c", "a", "x", 0), ("r", "b", None, 1), ("d", None, "z", 2),
    ]  # fmt: skip
    assert [r["event_at"] and r["event_at"].microsecond for r in rows] == [123000, None, 124000]


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_compressed_batches_are_read(compression: str | None) -> None:
    assert len(payloads(decoded({"batch": arrow(pa.table({"n": list(range(1000))}), compression=compression)}))) == 1000


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (b"", "cannot be read"),
        (b"no arrow at all", "cannot be read"),
        (arrow(pa.table({"n": [1, 2, 3]}))[:-40], "cannot be read"),
        (arrow(pa.table({"n": pa.array([], pa.int64())})), "no rows"),
        (arrow(pa.table({"n": range(100_001)})), "100001 rows"),
        (arrow(pa.table([pa.array([1]), pa.array([2])], names=["n", "n"])), "twice"),
        (arrow(pa.table({"_op": ["c"]})), "no columns of its own"),
        (arrow(pa.table({"n": [1], "_key": [[1]]})), "cannot be read"),
        (arrow(pa.table({"n": pa.array([timedelta(days=1)])})), "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_such_batch_is_rejected_whole(batch: bytes, reason: str) -> None:
    good = {"batch": arrow(pa.table({"n": [1]}))}
    found = decoded(good, {"batch": batch}, good)
    assert len(reasons(found)) == 1
    assert reason in reasons(found)[0]
    assert found.changes["entry_index"].to_pylist() == [0, 2]
    all_accounted_for(found)


@pytest.mark.parametrize("control", ["op", "table", "v"])
def test_a_control_beside_the_batch_that_is_not_utf8_rejects_the_entry_and_logs_none_of_it(control: str) -> None:
    found = decoded({"batch": arrow(pa.table({"n": [1, 2]})), control: b"\xff"})
    assert found.changes.num_rows == 0
    assert len(reasons(found)) == 1
    all_accounted_for(found)


def test_rows_at_fault_are_rejected_alone_with_bytes_that_can_be_decoded_again() -> None:
    table = pa.table(
        {"n": [1, 2, 3, 4], "_op": ["c", "?", "u", "u"], "_ts": ["1763895600123", None, "1763895600", None]}
    )
    found = decoded({"batch": arrow(table)})
    assert [row["n"] for row in payloads(found)] == [1, 4]  # type: ignore[index]
    assert found.rejections["entry_row"].to_pylist() == [1, 2]
    again = [
        dict(zip(parts[::2], parts[1::2], strict=True))
        for parts in map(unpack_raw, found.rejections["raw"].to_pylist())
    ]
    assert [json.loads(fields[b"data"]) for fields in again] == [{"n": 2}, {"n": 3}]
    all_accounted_for(found)


def test_an_entry_whose_op_is_unknown_or_empty_is_rejected() -> None:
    for op in ("x", ""):
        found = decoded({"batch": arrow(pa.table({"n": [1]})), "op": op})
        assert found.changes.num_rows == 0, op
        assert "op" in reasons(found)[0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Paris"])
def test_times_come_in_any_unit(unit: str, zone: str | None) -> None:
    at = pa.array([1763895600, None], pa.int64()).cast(pa.timestamp("s", zone)).cast(pa.timestamp(unit, zone))
    found = decoded({"batch": arrow(pa.table({"n": [1, 2], "_ts": at}))})
    assert found.changes["event_at"].to_pylist() == [datetime(2025, 11, 23, 11), None]


def test_a_time_with_nanoseconds_rejects_its_row_only() -> None:
    at = pa.array([1763895600000000000, 1763895600000000001], pa.timestamp("ns"))
    found = decoded({"batch": arrow(pa.table({"n": [1, 2], "_ts": at}))})
    assert [row["n"] for row in payloads(found)] == [1]  # type: ignore[index]
    assert "nanoseconds" in reasons(found)[0]


def test_values_keep_every_digit() -> None:
    table = pa.table(
        {
            "long": pa.array([2**53, 2**53 + 1, -(2**63)], pa.int64()),
            "ulong": pa.array([0, 2**64 - 1, None], pa.uint64()),
            "decimal": pa.array([Decimal("0.000000"), Decimal("-1.500000"), None], pa.decimal128(38, 6)),
            "double": [float("nan"), float("inf"), 0.1],
            "text": ['"\\\x00\x1f', "é\u2028", None],
            "bytes": [b"\x00\xff", b"", None],
            "day": [date(1970, 1, 1), date(9999, 12, 31), None],
            "time": [time(1, 2, 3, 4), None, None],
            "nanos": pa.array([1, None, 1763895600123456789], pa.timestamp("ns")),
            "zoned": pa.array([datetime(2025, 1, 1, tzinfo=UTC), None, None], pa.timestamp("us", "UTC")),
            "paris": pa.array([1763895600, None, None], pa.int64()).cast(pa.timestamp("s", "Europe/Paris")),
            "nested": [{"a": [1, 2**60]}, None, {"a": []}],
            "flag": [True, False, None],
            "kind": pa.array(["x", "y", None]).dictionary_encode(),
        }
    )
    rows = payloads(decoded({"batch": arrow(table)}))
    column = {name: [row[name] for row in rows] for name in table.column_names}  # type: ignore[index]
    assert column["long"] == [2**53, str(2**53 + 1), str(-(2**63))]
    assert column["ulong"] == [0, str(2**64 - 1), None]
    assert column["decimal"] == ["0.000000", "-1.500000", None]
    assert column["double"] == ["NaN", "Infinity", 0.1]
    assert column["text"] == ['"\\\x00\x1f', "é\u2028", None]
    assert column["bytes"] == ["AP8=", "", None]
    assert column["day"] == ["1970-01-01", "9999-12-31", None]
    assert column["nanos"][2].startswith("2025-11-23T11:00:00.123456789")
    assert column["zoned"][0].startswith("2025-01-01T00:00:00")
    assert column["paris"][0].startswith(("2025-11-23T11:00:00", "2025-11-23T12:00:00+01:00"))
    assert column["nested"] == [{"a": [1, str(2**60)]}, None, {"a": []}]
    assert column["flag"] == [True, False, None]
    assert column["kind"] == ["x", "y", None]


EXTREMES = [
    pa.array([2**62], pa.int64()).view(pa.timestamp("us")),
    pa.array([-(2**62)], pa.int64()).view(pa.timestamp("s")),
    pa.array([2**62], pa.int64()).view(pa.timestamp("ns", "UTC")),
    pa.array([2**31 - 1], pa.int32()).view(pa.date32()),
    pa.array([2**62], pa.int64()).view(pa.date64()),
    pa.array([2**62], pa.int64()).view(pa.duration("s")),
    pa.array([2**40], pa.int64()).view(pa.time64("us")),
    pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    pa.array([{"a": float("nan")}]),
    pa.array([[b"\xff"]]),
    pa.array([None], pa.null()),
    pa.array([1.5], pa.float16()),
    pa.array([Decimal(10) ** 75], pa.decimal256(76, 0)),
    pa.array(["x"], pa.large_string()),
    pa.array(["x"], pa.string_view()),
    pa.array([b"x"], pa.binary(1)),
    pa.array([[1]], pa.list_(pa.int64(), 1)),
    pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]),
    pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["x"])),
]


@pytest.mark.parametrize("column", EXTREMES, ids=lambda column: str(column.type))
@pytest.mark.parametrize("name", ["n", "_ts", "_key", "_op", "_id"])
def test_any_type_at_its_extremes_is_a_change_or_a_rejection(column: pa.Array, name: str) -> None:
    table = pa.table({name: column, **({} if name == "n" else {"n": [1]})})
    good = {"batch": arrow(pa.table({"n": [1]}))}
    all_accounted_for(decoded(good, {"batch": arrow(table)}, good))


@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_bytes_are_rejected(noise: bytes, at: int) -> None:
    whole = arrow(pa.table({"n": [1, 2, 3], "s": ["a", "b", None]}))
    damaged = whole[:at] + noise + whole[at + len(noise) :]
    all_accounted_for(decoded({"batch": damaged}))


# ── an entry of which some rows are logged already ──


def test_rows_that_are_logged_already_are_skipped() -> None:
    entry = {"batch": arrow(pa.table({"n": [0, 1, 2, 3], "_op": ["u", "u", "?", "u"]}))}
    partly = evolve(read(entry, entry), skip_through_row=1)
    found = decode(partly, {})
    assert [(r["entry_index"], r["entry_row"]) for r in found.changes.to_pylist()] == [
        (0, 3), (1, 0), (1, 1), (1, 3),
    ]  # fmt: skip
    assert found.rejections["entry_row"].to_pylist() == [2, 2]


def test_an_entry_partly_logged_that_cannot_be_read_any_more_is_not_lost() -> None:
    """The encoding was overridden between two starts: the rest of the entry must not vanish."""
    entry = {"batch": arrow(pa.table({"n": [0, 1, 2]}))}
    found = decode(evolve(read(entry), skip_through_row=0), {"trades": "json"})
    assert len(reasons(found)) == 1

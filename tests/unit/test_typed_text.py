"""Every type against a reference in Python: what fits becomes the exact value, and nothing else fits."""

from __future__ import annotations

import base64
import json
import math
import struct
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typed_room import EVERY_TYPE, checked, relation, typed

from replicator.column_types import ColumnType, Kind, parse_type
from replicator.default_value import default_problem
from replicator.schema import table_schema

MISFIT = object()


digits = st.text("0123456789", min_size=1, max_size=22)
number = st.builds(
    lambda sign, whole, fraction, exponent: sign + str(int(whole)) + fraction + exponent,
    st.sampled_from(["", "", "-"]),
    digits,
    st.one_of(st.just(""), digits.map(lambda d: "." + d), st.just(".0"), st.just(".5")),
    st.one_of(
        st.just(""),
        st.just(""),
        st.builds(lambda e, n: e + str(n), st.sampled_from(["e", "E+", "e-"]), st.integers(0, 45)),
    ),
)
limits = st.sampled_from(
    [
        str(sign * 2**bits + near)
        for bits in (7, 8, 15, 16, 31, 32, 63, 64, 127, 128)
        for sign in (1, -1)
        for near in (-1, 0, 1)
    ]
)
odd = st.sampled_from(
    ["", " 1", "1 ", "+1", "1_000", "01", "1.", ".5", "0x1F", "1e", "-", "--1", "1e400", "1e-400", "1,5", "1\0", "\0"]
) | st.sampled_from(
    ["nan", "inf", "NaN", "Infinity", "-Infinity", "true", "TRUE", "t", "yes", "null", "[1]", "epoch", "infinity", "é"]
)
instant = st.datetimes(datetime(1899, 12, 30), datetime(2300, 1, 3)).map(lambda d: d.isoformat())
instant_text = st.builds(
    lambda text, separator, more, zone: text.replace("T", separator) + (more if "." in text else "") + zone,
    instant,
    st.sampled_from("TT "),
    st.sampled_from(["", "", "0", "000", "123", "1234"]),
    st.sampled_from(["", "Z", "Z", "+00:00", "+02:00", "-0530", "+14", "+99:00", "z", " UTC", "+05Z", " Z"]),
)
epoch = st.one_of(st.integers(0, 10**20), st.integers(10**11 - 2, 10**14 + 1), st.integers(-(10**14), 0)).map(str)
text = st.one_of(st.text(max_size=20), odd, number, st.sampled_from(["buy", "it's", "1", "{}", "[", "-", "a" * 200]))
by_kind = {
    Kind.INTEGER: st.one_of(number, limits, odd),
    Kind.DECIMAL: st.one_of(number, limits, odd),
    Kind.FLOAT: st.one_of(number, odd, st.floats().map(repr), st.sampled_from(["3.5e38", "1.8e308"])),
    Kind.BOOLEAN: odd,
    Kind.VARCHAR: text,
    Kind.BLOB: st.one_of(st.binary(max_size=9).map(lambda b: base64.b64encode(b).decode()), text),
    Kind.UUID: st.one_of(
        st.uuids().map(str), st.uuids().map(lambda u: str(u).upper()), st.uuids().map(lambda u: u.hex), odd
    ),
    Kind.DATE: st.one_of(
        st.dates(date(1899, 12, 30), date(2300, 1, 2)).map(str), odd, st.just("2021-02-29"), instant_text
    ),
    Kind.TIMESTAMP: st.one_of(
        instant_text, instant_text, epoch, odd, st.sampled_from(["2021-02-29T00:00:00Z", "2021-01-01"])
    ),
    Kind.JSON: text,
    Kind.ENUM: st.one_of(st.sampled_from(["buy", "sell", "it's", "true", "1", "Buy", ""]), text),
}


def is_number(value: str) -> bool:
    try:
        return not isinstance(json.loads(value, parse_constant=str), str | None)
    except ValueError:
        return False


def reference(kind: ColumnType, sent: str, quoted: bool) -> Any:
    """What a sent text means: the value, or MISFIT."""
    if kind.kind is Kind.JSON:
        return json.dumps(sent, ensure_ascii=False) if quoted else sent
    if kind.kind is Kind.TIMESTAMP:
        return instant_reference(kind, sent)
    if kind.kind in (Kind.VARCHAR, Kind.BLOB, Kind.ENUM) and not quoted:
        return MISFIT
    if default_problem(kind, sent) is not None or (not kind.signed and sent.startswith("-") and sent != "-0"):
        return MISFIT
    match kind.kind:
        case Kind.INTEGER:
            return int(Decimal(sent))
        case Kind.DECIMAL:
            with localcontext(prec=100):
                return Decimal(sent).quantize(Decimal(1).scaleb(-kind.scale))
        case Kind.FLOAT:
            value = float(sent)
            return value if kind.bits == 64 else struct.unpack("f", struct.pack("f", value))[0]
        case Kind.BOOLEAN:
            return sent == "true"
        case Kind.BLOB:
            return base64.b64decode(sent)
        case Kind.UUID:
            return uuid.UUID(sent)
        case Kind.DATE:
            return date.fromisoformat(sent)
    return sent


def instant_reference(kind: ColumnType, sent: str) -> Any:
    """Nanoseconds since the epoch."""
    if sent.removeprefix("-").isdecimal() and sent.isascii():
        if not 10**11 <= abs(int(sent)) < 10**14:
            return MISFIT
        nanoseconds = int(sent) * 10**6
    else:
        if default_problem(kind, sent) is not None:
            return MISFIT
        whole, _, rest = sent.partition(".")
        fraction = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        moment = datetime.fromisoformat(whole + rest[len(fraction) :])
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        nanoseconds = (since // timedelta(seconds=1)) * 10**9 + int(fraction[:9].ljust(9, "0") or 0)
    beyond = (
        2**63 - 1 if kind.scale == 9 else (datetime(2300, 1, 1) - datetime(1970, 1, 1)) // timedelta(seconds=1) * 10**9
    )
    return nanoseconds if -2_208_988_800 * 10**9 <= nanoseconds < beyond else MISFIT


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return math.isnan(found) if math.isnan(expected) else struct.pack("d", found) == struct.pack("d", expected)
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("type_name", EVERY_TYPE)
def test_what_fits_is_the_exact_value_and_nothing_else_fits(type_name: str) -> None:
    kind = parse_type(type_name)
    schema = table_schema("t", {"k": "INT", "x": type_name}, ["k"])
    sent = [
        (value, True) if quoted or not is_number(value) else (value.strip(), False) for value, quoted in drawn(kind)
    ]
    payloads = [
        f'{{"k":{row},"x":{json.dumps(value, ensure_ascii=row % 2 == 0) if quoted else value}}}'
        for row, (value, quoted) in enumerate(sent)
    ]
    expected = [reference(kind, value, quoted) for value, quoted in sent]
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute("set timezone = 'America/New_York'")
        found = checked(database, schema, relation(payloads))
        fitting = [fits for fits, _ in found]
        assert fitting == [value is not MISFIT for value in expected], payloads
        kept = [row for row, value in enumerate(expected) if value is not MISFIT]
        rows = typed(database, schema, relation([payloads[row] for row in kept]))
    for row, value in zip(kept, rows, strict=True):
        if kind.kind is Kind.JSON:
            assert json.loads(value) == json.loads(expected[row]), payloads[row]
        else:
            assert same(value, expected[row]), (payloads[row], value)


def drawn(kind: ColumnType) -> list[tuple[str, bool]]:
    """About 180 values, always the same. All are compared at once: planning a query takes longer than their typing."""
    values: list[tuple[str, bool]] = []

    @settings(
        max_examples=4,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        phases=[Phase.generate],
    )
    @given(st.lists(st.tuples(by_kind[kind.kind], st.booleans()), min_size=30, max_size=60))
    def draw(some: list[tuple[str, bool]]) -> None:
        values.extend(some)

    draw()
    assert len(values) >= 120
    return values


def test_rounding_happens_only_where_the_column_asks_for_it(database: duckdb.DuckDBPyConnection) -> None:
    rounding = table_schema("t", {"k": "INT", "x": {"type": "DECIMAL(6,2)", "round": True}}, ["k"])
    strict = table_schema("t", {"k": "INT", "x": "DECIMAL(6,2)"}, ["k"])
    values = ["1.005", "-1.005", "1.0049999999999999999999999", "2.5e-3", "9999.994", "9999.995"]
    rows = relation([f'{{"k":1,"x":"{value}"}}' for value in values])
    assert not any(fits for fits, _ in checked(database, strict, rows))
    assert [fits for fits, _ in checked(database, rounding, rows)] == [True] * 5 + [False]
    expected = [Decimal(value).quantize(Decimal("0.01"), ROUND_HALF_UP) for value in values[:5]]
    assert typed(database, rounding, rows.slice(0, 5)) == expected


def test_a_number_keeps_every_digit_it_was_written_with(database: duckdb.DuckDBPyConnection) -> None:
    schema = table_schema("t", {"k": "INT", "x": "DECIMAL(38,20)", "j": "JSON"}, ["k"])
    rows = relation(['{"k":1,"x":123456789.12345678901234567890,"j":{"a": 0.1234567890123456789, "b":1.10}}'])
    assert typed(database, schema, rows) == [Decimal("123456789.12345678901234567890")]
    assert typed(database, schema, rows, "j") == ['{"a":0.1234567890123456789,"b":1.10}']


def test_a_number_with_an_exponent_is_exact(database: duckdb.DuckDBPyConnection) -> None:
    schema = table_schema("t", {"k": "INT", "x": "DECIMAL(9,2)"}, ["k"])
    rows = relation([f'{{"k":1,"x":{x}}}' for x in ("0.0000000774659e11", "774659000e-5", "7.74659E+3", "7746.59e0")])
    assert all(fits for fits, _ in checked(database, schema, rows))
    assert typed(database, schema, rows) == [Decimal("7746.59")] * 4

"""Values of every column type in all the forms in which they are sent, and what both sides must then hold.

Written without the code under test: the expected values are computed here, in Python.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
from attrs import frozen

LABELS = ("buy", "sell", "it's", "back\\slash", "ü")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SEED_TEXTS = ("", "a\0b", "ü😀\u202e", "'", '"\\', "null", "x" * 70_000, "\n\t", "{", "0")


@frozen(kw_only=True)
class Value:
    """``given`` to the Producer, ``text`` in a flat field, ``literal`` in JSON, ``arrow`` in an Arrow column."""

    given: Any
    text: str
    literal: str
    arrow: Any
    expected: Any


NOTHING = Value(given=None, text="", literal="null", arrow=None, expected=None)


@frozen(kw_only=True)
class Sort:
    """One column: how it is declared, its Arrow type, its limits and random values, and its reading on each side."""

    declared: str
    arrow: pa.DataType
    limits: Sequence[Value]
    draw: Callable[[random.Random], Value]
    duckdb: str = "{}"
    clickhouse: str = "{}"


def sorts() -> dict[str, Sort]:
    """Every type, by the name of its column."""
    found = {}
    for bits, name in ((8, "TINYINT"), (16, "SMALLINT"), (32, "INTEGER"), (64, "BIGINT"), (128, "HUGEINT")):
        found[f"i{bits}"] = _integers(name, bits, -(1 << bits - 1), (1 << bits - 1) - 1)
        found[f"u{bits}"] = _integers(f"U{name}", bits, 0, (1 << bits) - 1)
    for digits, scale in ((9, 2), (18, 6), (38, 10), (38, 0), (38, 38)):
        found[f"d{digits}_{scale}"] = _decimals(digits, scale)
    return found | {
        "f32": _floats("FLOAT", "f"),
        "f64": _floats("DOUBLE", "d"),
        "flag": _of("BOOLEAN", pa.bool_(), [_boolean(True), _boolean(False)]),
        "label": _of(
            "ENUM('buy', 'sell', 'it''s', 'back\\slash', 'ü')",
            pa.dictionary(pa.int8(), pa.string()),
            [_text(label) for label in LABELS],
            duckdb="{}::varchar",
            clickhouse="toString({})",
        ),
        "text": _of("VARCHAR", pa.string(), [_text(text) for text in SEED_TEXTS], _random_text),
        "bytes": _blobs(),
        "id": _uuids(),
        "day": _days(),
        "at": _instants("TIMESTAMP", pa.timestamp("us")),
        "at_zoned": _instants("TIMESTAMPTZ", pa.timestamp("us", "Europe/Athens")),
        "at_ns": _nanoseconds(),
        "nested": _of("JSON", pa.string(), [_json(value) for value in NESTED]),
    }


NESTED: tuple[Any, ...] = (
    {"a": [1, 2.5, "x\0ü", None, {}], "b": {"a": True}},
    [],
    "plain text",
    5,
    0.25,
    False,
    {"deep": [[[[["down"]]]]]},
)


def _of(
    declared: str,
    arrow: pa.DataType,
    limits: Sequence[Value],
    draw: Callable[[random.Random], Value] | None = None,
    duckdb: str = "{}",
    clickhouse: str = "{}",
) -> Sort:
    pick = draw or (lambda seed: seed.choice(limits))
    return Sort(declared=declared, arrow=arrow, limits=limits, draw=pick, duckdb=duckdb, clickhouse=clickhouse)


def _integers(name: str, bits: int, low: int, high: int) -> Sort:
    def value(n: int) -> Value:
        literal = str(n) if abs(n) <= 2**53 or n % 2 else f'"{n}"'
        return Value(given=n, text=str(n), literal=literal, arrow=n if bits < 128 else str(n), expected=n)

    sign = "" if low else "u"
    arrow = getattr(pa, f"{sign}int{bits}")() if bits < 128 else pa.string()
    edges = [n for n in (low, low + 1, high, high - 1, 0, 1, 2**53 + 1, 10**15, 10**16 - 1) if low <= n <= high]
    return _of(name, arrow, [value(n) for n in edges], lambda seed: value(seed.randint(low, high)))


def _decimals(digits: int, scale: int) -> Sort:
    def value(unscaled: int) -> Value:
        number = Decimal(unscaled).scaleb(-scale)
        text = f"{Decimal((unscaled < 0, tuple(map(int, str(abs(unscaled)))), -scale)):f}"
        exact = Decimal(text)
        assert number == exact or digits > 28
        literal = f'"{text}"' if unscaled % 2 else text
        return Value(given=exact, text=text, literal=literal, arrow=exact, expected=exact)

    most = 10**digits - 1
    edges = [value(n) for n in (most, -most, most - 1, 1, -1, 0)]
    return _of(
        f"DECIMAL({digits},{scale})",
        pa.decimal128(digits, scale),
        edges,
        lambda seed: value(seed.randint(-most, most) // 10 ** seed.randrange(digits)),
    )


def _floats(name: str, code: str) -> Sort:
    def value(number: float) -> Value:
        finite = number - number == 0
        text = repr(number) if finite else {"inf": "Infinity", "-inf": "-Infinity"}.get(repr(number), "NaN")
        literal = text if finite else f'"{text}"'
        return Value(given=number, text=text, literal=literal, arrow=number, expected=bits(code, number))

    def drawn(seed: random.Random) -> Value:
        pattern = seed.randbytes(struct.calcsize(code))
        number = struct.unpack(code, pattern)[0]
        return value(number if number == number else float("nan"))

    most = 3.4028234663852886e38 if code == "f" else 1.7976931348623157e308
    least = 1.401298464324817e-45 if code == "f" else 5e-324
    edges = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, most, -most, least, 0.5]
    return _of(name, pa.float32() if code == "f" else pa.float64(), [value(n) for n in edges], drawn)


def bits(code: str, number: float | None) -> str | None:
    """A float as its bits; every NaN alike."""
    return None if number is None else "nan" if number != number else struct.pack(">" + code, number).hex()


def _boolean(value: bool) -> Value:
    text = "true" if value else "false"
    return Value(given=value, text=text, literal=text, arrow=value, expected=value)


def _text(text: str) -> Value:
    return Value(given=text, text=text, literal=json.dumps(text), arrow=text, expected=text)


def _random_text(seed: random.Random) -> Value:
    return _text("".join(map(chr, seed.choices([*range(300), 0x1F600, 0xFFFF], k=seed.randint(0, 30)))))


def _json(value: Any) -> Value:
    """JSON text stands for itself in flat fields and Arrow strings; other text is a string."""
    literal = json.dumps(value, ensure_ascii=False)
    text = value if isinstance(value, str) else literal
    return Value(given=value, text=text, literal=literal, arrow=text, expected=value)


def _blobs() -> Sort:
    def value(blob: bytes) -> Value:
        text = base64.b64encode(blob).decode()
        return Value(given=blob, text=text, literal=f'"{text}"', arrow=blob, expected=blob.hex())

    edges = [b"", b"\0", b"\xff\xfe", bytes(range(256)), b"16 bytes as text"]
    return _of(
        "BLOB",
        pa.binary(),
        [value(blob) for blob in edges],
        lambda seed: value(seed.randbytes(seed.randrange(40))),
        duckdb="lower(hex({}))",
        clickhouse="lower(hex({}))",
    )


def _uuids() -> Sort:
    def value(number: int) -> Value:
        one = uuid.UUID(int=number)
        return Value(given=one, text=str(one), literal=f'"{str(one).upper()}"', arrow=str(one), expected=str(one))

    return _of(
        "UUID",
        pa.string(),
        [value(0), value(2**128 - 1), value(2**127)],
        lambda seed: value(seed.getrandbits(128)),
        duckdb="{}::varchar",
        clickhouse="toString({})",
    )


def _days() -> Sort:
    def value(day: date) -> Value:
        return Value(given=day, text=day.isoformat(), literal=f'"{day}"', arrow=day, expected=day.isoformat())

    edges = [date(1900, 1, 1), date(1969, 12, 31), date(1970, 1, 1), date(2000, 2, 29), date(2299, 12, 31)]
    return _of(
        "DATE",
        pa.date32(),
        [value(day) for day in edges],
        lambda seed: value(date(1900, 1, 1) + timedelta(days=seed.randrange(146_000))),
        duckdb="{}::varchar",
        clickhouse="toString({})",
    )


def _instants(name: str, arrow: pa.DataType) -> Sort:
    def value(microseconds: int) -> Value:
        instant = EPOCH + timedelta(microseconds=microseconds)
        text = instant.isoformat().replace("+00:00", "Z")
        epoch = microseconds % 1000 == 0 and 10**11 <= microseconds // 1000 < 10**13
        literal = str(microseconds // 1000) if epoch else f'"{text}"'
        return Value(given=instant, text=text, literal=literal, arrow=microseconds, expected=microseconds)

    low, high = (
        _microseconds(datetime(*day, tzinfo=UTC)) for day in ((1900, 1, 1), (2299, 12, 31, 23, 59, 59, 999999))
    )
    edges = [low, high, -1, 0, 1, 1_767_225_600_123_000]
    return _of(
        name,
        arrow,
        [value(n) for n in edges],
        lambda seed: value(seed.randint(low, high)),
        duckdb="epoch_us({})",
        clickhouse="toUnixTimestamp64Micro({})",
    )


def _microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)


def _nanoseconds() -> Sort:
    def value(nanoseconds: int) -> Value:
        whole, rest = divmod(nanoseconds, 10**9)
        text = f"{(EPOCH + timedelta(seconds=whole)).strftime('%Y-%m-%dT%H:%M:%S')}.{rest:09d}Z"
        return Value(given=text, text=text, literal=f'"{text}"', arrow=nanoseconds, expected=nanoseconds)

    low = _microseconds(datetime(1900, 1, 1, tzinfo=UTC)) * 1000
    high = 2**63 - 2
    edges = [low, high, -1, 0, 1, 1_767_225_600_123_456_789]
    return _of(
        "TIMESTAMP_NS",
        pa.timestamp("ns"),
        [value(n) for n in edges],
        lambda seed: value(seed.randint(low, high)),
        duckdb="epoch_ns({})",
        clickhouse="toUnixTimestamp64Nano({})",
    )

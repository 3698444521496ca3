"""Whether a literal fits a column type, decided in Python: for the few defaults a configuration holds.

The rules are those of ``typed``, which checks producers' values in DuckDB. It must never be used on changes.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal

from replicator.column_types import ColumnType, Kind

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(?P<fraction>\.[0-9]+)?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?"
)
_FIRST, _BEYOND = datetime(1900, 1, 1, tzinfo=UTC), datetime(2300, 1, 1, tzinfo=UTC)
_BEYOND_NANOSECONDS = datetime(2262, 4, 11, 23, 47, 16, tzinfo=UTC)
_FLOAT32_MAX = 3.4028235677973366e38


def default_problem(column_type: ColumnType, text: str) -> str | None:
    """What is wrong with ``text`` as a value of ``column_type``; None when it fits."""
    return _CHECKS[column_type.kind](column_type, text)


def plain_text(column_type: ColumnType, text: str) -> str:
    """A text that fits, in the form that a plain cast in DuckDB reads exactly: no exponent, no offset."""
    match column_type.kind:
        case Kind.INTEGER | Kind.DECIMAL:
            return format(Decimal(text), "f")
        case Kind.TIMESTAMP:
            return _utc(text)
    return text


def _utc(text: str) -> str:
    match = _INSTANT.fullmatch(text)
    assert match is not None
    fraction = match["fraction"] or ""
    instant = datetime.fromisoformat(text.replace(fraction, "", 1) if fraction else text)
    utc = instant.astimezone(UTC) if instant.tzinfo else instant
    return utc.strftime("%Y-%m-%d %H:%M:%S") + fraction


def _integer(column_type: ColumnType, text: str) -> str | None:
    if not _NUMBER.fullmatch(text):
        return "is not a number"
    value, (low, high) = Decimal(text), column_type.bounds
    if not low <= value <= high:
        return "is out of range"
    return None if value == value.to_integral_value() else "is not a whole number"


def _decimal(column_type: ColumnType, text: str) -> str | None:
    if not _NUMBER.fullmatch(text):
        return "is not a number"
    _, digits, exponent = Decimal(text).as_tuple()
    significant = "".join(map(str, digits)).lstrip("0")
    trailing = len(significant) - len(significant.rstrip("0"))
    if significant and -(int(exponent) + trailing) > column_type.scale:
        return "has more decimals than the scale"
    return None if abs(Decimal(text)) < 10 ** (column_type.digits - column_type.scale) else "is out of range"


def _float(column_type: ColumnType, text: str) -> str | None:
    if text in ("NaN", "Infinity", "-Infinity"):
        return None
    if not _NUMBER.fullmatch(text):
        return "is not a number"
    value = abs(float(text))
    fits = math.isfinite(value) and (column_type.bits == 64 or value < _FLOAT32_MAX)
    return None if fits else "is out of range"


def _boolean(_type: ColumnType, text: str) -> str | None:
    return None if text in ("true", "false") else "is neither true nor false"


def _any_text(_type: ColumnType, _text: str) -> str | None:
    return None


def _blob(_type: ColumnType, text: str) -> str | None:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return "is not base64"
    return None


def _uuid(_type: ColumnType, text: str) -> str | None:
    try:
        return None if str(uuid.UUID(text)) == text.lower() else "is not a UUID"
    except ValueError:
        return "is not a UUID"


def _date(_type: ColumnType, text: str) -> str | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return "is not a date"
    return None if _FIRST.date() <= day < _BEYOND.date() and len(text) == 10 else "is outside 1900..2299"


def _timestamp(column_type: ColumnType, text: str) -> str | None:
    match = _INSTANT.fullmatch(text)
    if match is None:
        return "is not an ISO 8601 timestamp"
    if len((match["fraction"] or "").rstrip("0")) - 1 > column_type.scale:
        return "has more decimals than the type"
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return "is not a timestamp"
    instant = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    beyond = _BEYOND_NANOSECONDS if column_type.scale == 9 else _BEYOND
    return None if _FIRST <= instant < beyond else f"is outside 1900..{beyond.year - (column_type.scale == 6)}"


def _json(_type: ColumnType, text: str) -> str | None:
    try:
        json.loads(text)
    except ValueError:
        return "is not JSON"
    return None


def _enum(column_type: ColumnType, text: str) -> str | None:
    return None if text in column_type.values else f"is not one of {', '.join(column_type.values)}"


_CHECKS: Mapping[Kind, Callable[[ColumnType, str], str | None]] = {
    Kind.INTEGER: _integer,
    Kind.DECIMAL: _decimal,
    Kind.FLOAT: _float,
    Kind.BOOLEAN: _boolean,
    Kind.VARCHAR: _any_text,
    Kind.BLOB: _blob,
    Kind.UUID: _uuid,
    Kind.DATE: _date,
    Kind.TIMESTAMP: _timestamp,
    Kind.JSON: _json,
    Kind.ENUM: _enum,
}

"""Payloads as canonical JSON, from columns and from what producers sent. Pure.

Guarantees: no digit is lost (decimals and integers beyond 2^53 become strings, binary base64, NaN and infinities
strings, instants ISO 8601 with every digit they have), and what comes out is JSON by RFC 8259.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

INTEGER_EXACT_MAX = 1 << 53
"""Beyond it a reader that parses numbers as doubles (JavaScript, jq) loses digits."""


def json_objects(members: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """One JSON object per row from columns of JSON text, in the given order. A null member is JSON null."""
    if not members:
        return pa.repeat("{}", rows)
    pieces: list[Any] = []
    for place, (name, values) in enumerate(members.items()):
        pieces += [pa.scalar(("," if place else "{") + json_text(name) + ":"), pc.fill_null(values, "null")]
    return pc.binary_join_element_wise(*pieces, pa.scalar("}"), "")


def json_text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def json_texts(values: pa.Array) -> pa.Array:
    """Texts as JSON string literals. Only those that hold a quote, a backslash or a control are touched singly."""
    quoted = _quoted(values)
    special = pc.fill_null(pc.match_substring_regex(values, r'["\\\x00-\x1f]'), False)
    if pc.any(special).as_py():
        escaped = pa.array([json_text(value) for value in values.filter(special).to_pylist()], quoted.type)
        quoted = pc.replace_with_mask(quoted, special, escaped)
    return quoted


def table_json(table: pa.Table) -> pa.Array:
    """Each row of an Arrow table as canonical JSON. Raises ValueError for a type that JSON cannot carry exactly."""
    members = {name: column_json(table[name].combine_chunks(), name) for name in table.column_names}
    return json_objects(members, table.num_rows)


def column_json(values: pa.Array, name: str) -> pa.Array:
    """One column as JSON texts, nulls kept as nulls."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        texts = column_json(values.dictionary_decode(), name)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        texts = json_texts(values.cast(pa.string()))
    elif pa.types.is_boolean(kind):
        texts = pc.if_else(values, "true", "false")
    elif pa.types.is_integer(kind):
        texts = _integers(values)
    elif pa.types.is_decimal(kind):
        texts = _quoted(_plain_decimals(values))
    elif pa.types.is_timestamp(kind):
        texts = _quoted(_timestamps(values))
    elif pa.types.is_date32(kind):
        texts = _quoted(values.cast(pa.string()))
    else:
        texts = pa.array([None if v is None else _any_json(v, name) for v in values.to_pylist()], pa.string())
    return texts


def _quoted(texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar('"'), texts, pa.scalar('"'), "")


def _integers(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    if values.type.bit_width < 64 or len(values) == values.null_count:
        return texts
    bounds = pc.min_max(values)
    if bounds["min"].as_py() >= -INTEGER_EXACT_MAX and bounds["max"].as_py() <= INTEGER_EXACT_MAX:
        return texts
    wide = pc.greater(values, pa.scalar(INTEGER_EXACT_MAX, values.type))
    if bounds["min"].as_py() < 0:
        wide = pc.or_(wide, pc.less(values, pa.scalar(-INTEGER_EXACT_MAX, values.type)))
    return pc.if_else(wide, _quoted(texts), texts)


def _plain_decimals(values: pa.Array) -> pa.Array:
    """Decimals as digits. Arrow writes small ones with an exponent (0E-6): those are rewritten singly."""
    texts = values.cast(pa.string())
    exponent = pc.fill_null(pc.match_substring(texts, "E"), False)
    if pc.any(exponent).as_py():
        plain = pa.array([format(value, "f") for value in values.filter(exponent).to_pylist()], pa.string())
        texts = pc.replace_with_mask(texts, exponent, plain)
    return texts


def _timestamps(values: pa.Array) -> pa.Array:
    """ISO 8601 with as many decimals as the unit has; with Z where the type has a zone."""
    plain = values.cast(pa.timestamp(values.type.unit)) if values.type.tz else values
    texts = pc.strftime(plain, format="%Y-%m-%dT%H:%M:%S")
    return pc.binary_join_element_wise(texts, "Z", "") if values.type.tz else texts


def _any_json(value: Any, name: str) -> str:
    try:
        return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"column {name!r}: {error}") from None


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one line per kind of value
    """A Python value as something that JSON carries without loss."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) <= INTEGER_EXACT_MAX else str(value)
        case float():
            return value if math.isfinite(value) else float_text(value)
        case Decimal():
            return format(value, "f")
        case bytes():
            return base64.b64encode(value).decode()
        case datetime() | date() | time():
            return value.isoformat()
        case dict():
            return {str(k): _plain(v) for k, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
    raise TypeError(f"{type(value).__name__} has no exact form in JSON")


def float_text(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def strict_json(payload: str) -> str:
    """A payload that DuckDB let pass, as RFC 8259 has it, long numbers as strings.

    Raises ValueError with the reason when it is no JSON object.
    """
    try:
        parsed = json.loads(payload, parse_int=_Number, parse_float=_Number, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("is not a JSON object")
    if not _LONG_NUMBER.search(payload):
        return payload
    return _write(json.loads(payload, parse_int=_Number, parse_float=_Number, object_pairs_hook=_Pairs))


_LONG_NUMBER = re.compile(r"[:\[,]\s*-?[0-9][0-9.eE+-]{15,}")


class _Number(str):
    """A number as its text."""

    __slots__ = ()


class _Pairs(list[tuple[str, Any]]):
    """An object as its members in order, duplicates and all."""


def _refuse(constant: str) -> None:
    raise ValueError(f"holds {constant}, which is not JSON: send it as a string")


def _write(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "{" + ",".join(f"{json_text(k)}:{_write(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_write, value)) + "]"
    if isinstance(value, _Number):
        return str(value) if _fits_a_double(value) else f'"{value}"'
    return json.dumps(value, ensure_ascii=False)


def _fits_a_double(number: str) -> bool:
    if number.lstrip("-").isdigit():
        return len(number) <= 15 or abs(int(number)) <= INTEGER_EXACT_MAX
    digits = re.sub(r"[eE].*|[-.]", "", number).strip("0")
    return len(digits) <= 15 and math.isfinite(float(number))

"""A payload that DuckDB's JSON reader let pass, as RFC 8259 has it. Pure.

Guarantees: what comes out is JSON, and no digit is lost: a number that a double does not hold becomes a string.
Columns become canonical JSON in `canonical`; this is for the few payloads that need a look one by one.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from replicator.canonical import EXACT_INTEGER_MAX

_DIGITS_EXACT = 15
"""Decimal digits that every double keeps."""


def strict_json(payload: str) -> str:
    """The payload as it is, or with its long numbers as strings. Raises ValueError when it is no JSON object."""
    try:
        return _strict(payload)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _strict(payload: str) -> str:
    numbers: list[_Number] = []

    def number(text: str) -> _Number:
        numbers.append(_Number(text))
        return numbers[-1]

    parsed = json.loads(payload, parse_int=number, parse_float=number, parse_constant=_refuse)
    if not isinstance(parsed, dict):
        raise ValueError("is not a JSON object")
    if all(map(_fits_a_double, numbers)):
        return payload
    written = _write(json.loads(payload, parse_int=_Number, parse_float=_Number, object_pairs_hook=_Pairs))
    if not written.isascii() and _LONE_SURROGATE.search(written):
        raise ValueError("holds a lone surrogate, which is no character")
    return written


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class _Number(str):
    """A number as its text."""

    __slots__ = ()


class _Pairs(list[tuple[str, Any]]):
    """An object as its members in order, duplicates and all."""


def _refuse(constant: str) -> None:
    raise ValueError(f"holds {constant}, which is not JSON: send it as a string")


def _write(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "{" + ",".join(f"{_text(k)}:{_write(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_write, value)) + "]"
    if isinstance(value, _Number):
        return str(value) if _fits_a_double(value) else f'"{value}"'
    return _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _fits_a_double(number: str) -> bool:
    if number.lstrip("-").isdigit():
        return len(number) <= _DIGITS_EXACT or (len(number) < 20 and abs(int(number)) <= EXACT_INTEGER_MAX)
    digits = re.sub(r"[eE].*|[-.]", "", number).strip("0")
    return len(digits) <= _DIGITS_EXACT and math.isfinite(float(number))

"""Lines of NDJSON: strict JSON objects whose numbers keep the digits they were written with. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

import pyarrow as pa

from replicator.canonical import EXACT_INTEGER_MAX

ARRAY_HINT = "this is a JSON array; one object per line is needed, as jq -c '.[]' writes it"

DOUBLE_DIGITS = 15
"""A number of up to so many characters survives a reader that makes doubles of numbers."""


class Number(str):
    """A JSON number as its source text."""

    __slots__ = ()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} stands twice in one object")
    return row


_decode = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=_refuse, object_pairs_hook=_once).decode


def parse(text: str) -> dict[str, Any]:
    """A line as a mapping. Raises ValueError for anything but one strict JSON object."""
    try:
        value = _decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"JSON, but no object: {text[:40]}")
    return value


def problem(error: ValueError, line: bytes) -> str:
    """What is wrong with a line, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno}): {line[:60].decode(errors='replace')}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start + 1})"
    return str(error)


def dump(value: Any, number: Callable[[str], str] = str) -> str:
    """JSON text of a parsed value; ``number`` writes its numbers, by default as they were written."""
    if isinstance(value, Number):
        return number(value)
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{encode_basestring(name)}:{dump(each, number)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(dump(each, number) for each in value) + "]"
    return {None: "null", True: "true", False: "false"}[value]


def safe_number(text: str) -> str:
    """A number as canonical JSON: one that a double cannot hold becomes a string."""
    if len(text) <= DOUBLE_DIGITS or (text.lstrip("-").isdecimal() and abs(int(text)) <= EXACT_INTEGER_MAX):
        return str(text)
    return f'"{text}"'


def columns(rows: Sequence[Mapping[str, Any]], names: Collection[str] | None) -> pa.RecordBatch:
    """The named columns of parsed rows (all when None), in the order in which they first appear; absent is null."""
    if names is None:
        names = dict.fromkeys(name for row in rows for name in row)
    present = [name for name in names if any(name in row for row in rows)]
    arrays = [_column([row.get(name) for row in rows]) for name in present]
    if not present:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * len(rows), pa.struct([])))
    return pa.RecordBatch.from_arrays(arrays, names=present)


def _column(values: list[Any]) -> pa.Array:
    """Integers, booleans and texts by their type; anything else, nested or mixed as JSON, alike in every run."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {Number}:
        try:
            return pa.array(values, pa.string()).cast(pa.int64())
        except pa.ArrowInvalid:
            pass  # decimals, or integers beyond 64 bits
    if kinds <= {str}:
        return pa.array(values, pa.string())
    texts = [None if value is None else dump(value, safe_number) for value in values]
    return pa.array(texts, pa.string()).cast(pa.json_())

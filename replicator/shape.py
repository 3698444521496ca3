"""The usual forms of a payload, recognised by one regular expression for whole columns at once. Pure.

Guarantees: what is recognised would also pass every check of `admit` and `typed`, unchanged and under the same key;
what is not recognised says nothing: it goes through those checks. Never decides that a payload is bad.
An expression names the members in the order in which samples had them, so it cannot match a member twice; the
values it takes are the plain ones: texts without escapes, numbers that a double holds, days that every year has.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen

from replicator.column_types import Kind
from replicator.schema import Column, OnUnknownField, TableSchema

SHAPES_MAX = 4
"""Different forms looked for in one read; rows of any other are checked one stage later."""
SAMPLES = 16
LOOKS_MAX = 3
"""How often samples are taken, each time of what is left: one rare form would cost its whole read a plan in DuckDB."""
SAMPLE_CHARACTERS_MAX = 100_000
DIGITS_MAX = 15
"""Digits of a number outside quotes: every double keeps them, so that `payload` would leave it as it is."""

_CHARACTERS = r'[^"\\\x00-\x1f]*'
_TEXT = f'"{_CHARACTERS}"'
_NUMBER = r"-?(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,5})?"
_PLAIN = f"{_TEXT}|{_NUMBER}|true|false"
_SCALAR = f"(?:{_PLAIN}|null)"
_LIST = rf"\[(?:{_SCALAR}(?:, ?{_SCALAR})*)?\]"
_OBJECT = rf"\{{(?:{_TEXT}: ?{_SCALAR}(?:, ?{_TEXT}: ?{_SCALAR})*)?\}}"
_DOCUMENT = f"{_PLAIN}|{_LIST}|{_OBJECT}"
_ANY = f"(?:{_DOCUMENT}|null)"
_PLAIN_OBJECT = rf"^\{{{_TEXT}: ?{_ANY}(?:, ?{_TEXT}: ?{_ANY})*\}}$"
_DAY = r"(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
_CLOCK = r"[T ](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_MILLISECONDS = "(?:[1-8][0-9]{12}|[1-9][0-9]{11})"  # 1973 to 2255
_HEX = "[0-9a-fA-F]"
_NOTHING = r"[^\x00-\x{10FFFF}]"
_LABELS_MAX = 64
_KEY_KINDS = (Kind.VARCHAR, Kind.INTEGER)
"""Kinds whose canonical text is what stands in the payload."""


@frozen(kw_only=True)
class Shape:
    """``whole`` matches a payload of this form; ``head`` extracts the key columns of one that does."""

    whole: str
    head: str
    deletes_only: bool


def plain_objects(payload: pa.Array) -> pa.Array:
    """Which payloads are JSON objects that need no second look."""
    sample = pc.match_substring_regex(_samples(payload), _PLAIN_OBJECT)
    if not pc.any(sample).as_py():
        return pa.repeat(pa.scalar(False), len(payload))
    return pc.fill_null(pc.match_substring_regex(payload, _PLAIN_OBJECT), False)


def canonical_keys(schema: TableSchema, op: pa.Array, key: pa.Array, payload: pa.Array) -> pa.Array:
    """The canonical key of each change that is recognised, and so fits the schema; null for the others."""
    keys = _bare_deletes(schema, op, key, payload)
    for _ in range(LOOKS_MAX):
        before, keys = keys.null_count, _look(schema, op, keys, payload)
        if not keys.null_count or keys.null_count == before:
            break
    return keys


def _look(schema: TableSchema, op: pa.Array, keys: pa.Array, payload: pa.Array) -> pa.Array:
    """The keys, with those that the likely shapes of what is not recognised yet give."""
    rest = payload if keys.null_count == len(keys) else payload.filter(pc.is_null(keys))
    for shape in _likely_shapes(schema, rest):
        waiting = pc.and_(pc.is_null(keys), pc.is_valid(payload))
        if shape.deletes_only:
            waiting = pc.and_(waiting, pc.equal(op, "d"))
        rows = waiting.true_count
        if rows == len(payload):
            keys = _keys_of(shape, payload)
        elif rows:
            keys = pc.replace_with_mask(keys, waiting, _keys_of(shape, payload.filter(waiting)))
    return keys


def _bare_deletes(schema: TableSchema, op: pa.Array, key: pa.Array, payload: pa.Array) -> pa.Array:
    """A delete that only names its key, where the key is one text column."""
    if payload.null_count and [column.type.kind for column in schema.key_columns] == [Kind.VARCHAR]:
        return pc.if_else(pc.and_(pc.equal(op, "d"), pc.is_null(payload)), key, None)
    return pa.nulls(len(payload), pa.string())


def _samples(payload: pa.Array) -> pa.Array:
    return payload.take(pa.array(np.linspace(0, len(payload) - 1, min(SAMPLES, len(payload)), dtype=np.int64)))


def _likely_shapes(schema: TableSchema, payload: pa.Array) -> Iterable[Shape]:
    """The shapes of a few payloads, the most frequent first, each only if it does match one of them."""
    samples = _samples(payload).drop_null()
    forms = Counter(_member_names(text) for text in samples.to_pylist() if len(text) <= SAMPLE_CHARACTERS_MAX)
    for names, _ in forms.most_common(SHAPES_MAX):
        shape = shape_of(schema, names)
        if shape is not None and pc.any(pc.match_substring_regex(samples, shape.whole)).as_py():
            yield shape


def _keys_of(shape: Shape, payload: pa.Array) -> pa.Array:
    """The canonical keys of the payloads of this shape; null for the others."""
    found = pc.extract_regex(payload, shape.head)
    texts = [pc.struct_field(found, f"k{place}") for place in range(found.type.num_fields)]
    if len(texts) == 1:
        keys = texts[0]
    else:
        quoted = [part for text in texts for part in (pa.scalar(',"'), text, pa.scalar('"'))]
        keys = pc.binary_join_element_wise(pa.scalar('["'), *quoted[1:], pa.scalar("]"), "")
    matched = pc.match_substring_regex(payload, shape.whole)
    return keys if matched.true_count == len(payload) else pc.if_else(matched, keys, None)


def _member_names(payload: str) -> tuple[str, ...]:
    """The names of an object's members in their order; none where the payload is no object."""
    try:
        members = json.loads(payload, object_pairs_hook=_Names)
    except (ValueError, RecursionError):
        return ()
    return tuple(members) if isinstance(members, _Names) else ()


class _Names(list[str]):
    """The names of an object's members."""

    def __init__(self, pairs: Sequence[tuple[str, object]]) -> None:
        super().__init__(name for name, _ in pairs)


@lru_cache(maxsize=256)
def shape_of(schema: TableSchema, names: tuple[str, ...]) -> Shape | None:
    """The shape of payloads with these members, in this order. None where it would promise too much."""
    columns = {column.name: column for column in schema.columns}
    if len(set(names)) < len(names) or not set(schema.key) <= set(names) or not all(map(_is_plain, names)):
        return None
    if schema.on_unknown_field is OnUnknownField.REJECT and not set(names) <= set(columns):
        return None
    if any(column.type.kind not in _KEY_KINDS for column in schema.key_columns):
        return None
    required = {column.name for column in schema.columns if column.not_null and column.default is None}
    members = [f'"{_escaped(name)}": ?{_value(schema, columns.get(name))}' for name in names]
    last = max(names.index(name) for name in schema.key) + 1
    head = [
        f'"{_escaped(name)}": ?{_captured(schema, columns[name])}' if name in schema.key else member
        for name, member in zip(names[:last], members[:last], strict=True)
    ]
    return Shape(
        whole=rf"^\{{{', ?'.join(members)}\}}$",
        head=rf"^\{{{', ?'.join(head)}",
        deletes_only=not required <= set(names),
    )


def _is_plain(name: str) -> bool:
    return name.isascii() and name.isprintable() and '"' not in name and "\\" not in name


def _escaped(text: str) -> str:
    """A text as a regular expression that matches it alone."""
    return "".join(c if c.isalnum() and c.isascii() else f"\\x{{{ord(c):x}}}" for c in text)


def _captured(schema: TableSchema, column: Column) -> str:
    """A key column's text, in a payload that is known to be of the shape."""
    group = f"?P<k{schema.key.index(column.name)}>"
    return f'"({group}{_CHARACTERS})"' if column.type.kind is Kind.VARCHAR else f'"?({group}-?[0-9]+)"?'


def _value(schema: TableSchema, column: Column | None) -> str:
    """What a member may hold: the plain values that fit its column, or null where that may be."""
    if column is None:
        return _ANY
    forms = list(_FORMS[column.type.kind](column))
    if not (column.not_null or schema.is_key(column)):
        forms.append("null")
    return f"(?:{'|'.join(forms)})"


def _integers(column: Column) -> Iterable[str]:
    low, high = column.type.bounds
    digits = len(str(high)) - 1
    sign = "-?" if low else ""
    for open_, shut, most in (('"', '"', digits), ("", "", min(digits, DIGITS_MAX))):
        yield f"{open_}(?:0|{sign}[1-9][0-9]{{0,{most - 1}}}){shut}"


def _decimals(column: Column) -> Iterable[str]:
    whole, scale = column.type.digits - column.type.scale, column.type.scale
    for quote, most, decimals in (('"', whole, scale), ("", min(whole, 9), min(scale, 5))):
        number = f"(?:0|[1-9][0-9]{{0,{most - 1}}})" if most else "0"
        fraction = rf"(?:\.[0-9]{{1,{decimals}}})?" if decimals else ""
        yield f"{quote}-?{number}{fraction}{quote}"


def _floats(_column: Column) -> Iterable[str]:
    return _NUMBER, f'"{_NUMBER}"'


def _texts(_column: Column) -> Iterable[str]:
    return (_TEXT,)


def _blobs(_column: Column) -> Iterable[str]:
    return ('"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"',)


def _uuids(_column: Column) -> Iterable[str]:
    return (f'"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}"',)


def _booleans(_column: Column) -> Iterable[str]:
    return "true", "false"


def _enums(column: Column) -> Iterable[str]:
    labels = [label for label in column.type.values if _is_plain(label)]
    return [f'"{_escaped(label)}"' for label in labels] if 0 < len(labels) <= _LABELS_MAX else [_NOTHING]


def _years(column: Column) -> str:
    return "(?:19|2[01])[0-9]{2}" if column.type.scale == 9 else "(?:19|2[0-2])[0-9]{2}"


def _dates(column: Column) -> Iterable[str]:
    return (f'"{_years(column)}-{_DAY}"',)


def _instants(column: Column) -> Iterable[str]:
    fraction = rf"(?:\.[0-9]{{1,{column.type.scale}}})?"
    return rf'"{_years(column)}-{_DAY}{_CLOCK}{fraction}(?:Z|\+00:00)?"', _MILLISECONDS


def _documents(_column: Column) -> Iterable[str]:
    return (_DOCUMENT,)


_FORMS: Mapping[Kind, Callable[[Column], Iterable[str]]] = {
    Kind.INTEGER: _integers,
    Kind.DECIMAL: _decimals,
    Kind.FLOAT: _floats,
    Kind.BOOLEAN: _booleans,
    Kind.VARCHAR: _texts,
    Kind.BLOB: _blobs,
    Kind.UUID: _uuids,
    Kind.DATE: _dates,
    Kind.TIMESTAMP: _instants,
    Kind.JSON: _documents,
    Kind.ENUM: _enums,
}

"""Values and Arrow columns as text: one canonical JSON for a payload, one plain text for a key or a flat field.

Guarantees that no digit is lost: decimals and integers beyond 2^53 become strings, binary base64, NaN and the
infinities strings, instants ISO 8601 in UTC with every digit they have. What has no exact text (a naive datetime,
a set, a lone surrogate) is a ``UsageError`` that names the field and the value.
Must never guess, round or replace a value; has no I/O and no clock.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from replicator.errors import UsageError

EXACT_INTEGER_MAX = 2**53
"""The largest integer that every JSON reader keeps, doubles included."""

_EXPONENT_MAX = 100
_dump = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def refusal(path: str, value: object, problem: str, hint: str) -> UsageError:
    """The error for a value that has no exact text; the value is shortened, its field is named."""
    try:
        shown = repr(value)
    except Exception:  # a broken __repr__, or an integer too long to print, must not hide the refusal
        shown = f"<{type(value).__name__}>"
    return UsageError(f"{path}: {shown if len(shown) <= 80 else shown[:77] + '...'} {problem}", hint=hint)


def canonical_object(row: Mapping[str, Any], where: str) -> bytes:
    """A row as one canonical JSON object in UTF-8; ``where`` names it in errors."""
    try:
        return _dump(_object(row, where)).encode()
    except UnicodeEncodeError:
        raise _surrogate(row, where) from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply, or within itself", hint="flatten the value") from None


def plain_value(value: object, path: str) -> str:
    """One value as plain text, for a key or a flat field: strings as they are, anything nested as JSON."""
    try:
        ready = ready_value(value, path)
        text = ready if isinstance(ready, str) else _dump(ready)
        text.encode()
    except UnicodeEncodeError:
        raise _surrogate(value, path) from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply, or within itself", hint="flatten the value") from None
    return text


def canonical_value(value: object, path: str) -> str:
    """One value as canonical JSON text."""
    return canonical_object({"": value}, path)[4:-1].decode()


def key_text(values: Sequence[object], path: str) -> str:
    """A key as design §3 writes it: one column as its text, several as a JSON array."""
    if not values or any(value is None for value in values):
        raise refusal(path, list(values), "is no key", "a key has at least one column and none of them is null")
    if len(values) == 1:
        return plain_value(values[0], path)
    return plain_value(list(values), path)


def ready_value(value: Any, path: str) -> Any:
    """The value as ``json`` may write it without loss."""
    kind = type(value)
    if kind is str or kind is bool or value is None or (kind is float and math.isfinite(value)):
        return value
    if kind is int:
        return value if -EXACT_INTEGER_MAX <= value <= EXACT_INTEGER_MAX else _long_integer(value, path)
    if kind is dict:
        return _object(value, path)
    if kind is list:
        return [ready_value(item, f"{path}[{position}]") for position, item in enumerate(value)]
    for base, convert in _CONVERSIONS:
        if isinstance(value, base):
            return convert(value, path)
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _numpy_scalar(value, path)
    raise refusal(path, value, f"of type {kind.__name__} cannot be sent", "convert it to a plain value first")


def _object(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    for name in row:
        if not isinstance(name, str):
            raise refusal(path, name, "is a field name that is not text", "name fields with strings")
    return {name: ready_value(value, f"{path}.{name}") for name, value in row.items()}


def _long_integer(value: int, path: str) -> str:
    try:
        return str(value)
    except ValueError:
        raise UsageError(
            f"{path}: an integer of {value.bit_length()} bits is too long", hint="send it as text"
        ) from None


def _float(value: float, path: str) -> float | str:  # noqa: ARG001 - the table's signature
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _decimal(value: Decimal, path: str) -> str:
    if value.is_snan():
        raise refusal(path, value, "is a signalling NaN", "send NaN or null")
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int):
        return format(value, "f") if abs(exponent) <= _EXPONENT_MAX else str(value)
    return _float(float(value), path)  # type: ignore[return-value]


def _datetime(value: dt.datetime, path: str) -> str:
    if value.tzinfo is None or value.utcoffset() is None:
        raise refusal(path, value, "has no time zone", "give an aware datetime, such as datetime.now(UTC)")
    return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _numpy_scalar(value: Any, path: str) -> Any:
    plain = value.item()
    if type(plain) is type(value) or "datetime" in str(value.dtype) or "timedelta" in str(value.dtype):
        raise refusal(path, value, "has no time zone or unit that is sure", "give an aware datetime, or its text")
    return ready_value(plain, path)


def _array(value: Sequence[Any], path: str) -> list[Any]:
    return [ready_value(item, f"{path}[{position}]") for position, item in enumerate(value)]


_CONVERSIONS: tuple[tuple[Any, Callable[[Any, str], Any]], ...] = (
    (Decimal, _decimal),
    (dt.datetime, _datetime),
    ((dt.date, dt.time), lambda value, _: value.isoformat()),
    (UUID, lambda value, _: str(value)),
    ((bytes, bytearray, memoryview), lambda value, _: b64encode(value).decode()),
    (float, _float),
    (str, lambda value, _: str.__str__(value)),
    (int, lambda value, path: ready_value(int(value), path)),
    (Mapping, _object),
    ((list, tuple), _array),
)


def _surrogate(value: object, path: str) -> UsageError:
    """Finds the text that UTF-8 cannot hold, so that the error can name it."""
    found = next(_surrogates(value, path), (path, value))
    return refusal(*found, "holds a lone surrogate, which UTF-8 cannot hold", "repair the text, or send it as bytes")


def _surrogates(value: object, path: str) -> Any:
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            yield path, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _surrogates(name, path)
            yield from _surrogates(item, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _surrogates(item, f"{path}[{position}]")


# ── Arrow columns ──


def json_objects(columns: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """Columns as one canonical JSON object per row; a null is written as null."""
    if not columns:
        return pa.repeat(pa.scalar("{}"), rows)
    parts: list[Any] = []
    for name, column in columns.items():
        parts += [("," if parts else "{") + _dump(name) + ":", json_column(column, name)]
    return pc.binary_join_element_wise(*parts, "}", "")


def embed_json(
    columns: Mapping[str, pa.Array], tables: pa.Array, json_columns: Mapping[str, frozenset[str]]
) -> dict[str, pa.Array]:
    """The columns, with texts that are JSON taken as the JSON they are where the row's table has such a column.

    Any other text there stays a string, as it would be in a JSON payload.
    """
    embedded = dict(columns)
    for name, column in columns.items():
        owners = [table for table, names in json_columns.items() if name in names]
        if owners and _is_text(plain := _unwrapped(column)):
            theirs = pc.is_in(tables, pa.array(owners, pa.string())).to_pylist()
            texts = [
                None if text is None else text if mine and _is_json(text) else _dump(text)
                for text, mine in zip(plain.to_pylist(), theirs, strict=True)
            ]
            embedded[name] = pa.array(texts, pa.string()).cast(pa.json_())
    return embedded


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_int=str, parse_constant=_no_constant)
    except ValueError:
        return False
    except RecursionError:  # refused later, with the whole payload
        return True
    return True


def _no_constant(constant: str) -> None:
    raise ValueError(constant)


def key_column(columns: Mapping[str, pa.Array], names: Sequence[str]) -> pa.Array:
    """The key of each row from its key columns; null where one of them is null."""
    if len(names) == 1:
        return plain_column(columns[names[0]], names[0])
    parts: list[Any] = []
    for name in names:
        text = json_column(columns[name], name)
        parts += ["," if parts else "[", pc.if_else(columns[name].is_valid(), text, None)]
    return pc.binary_join_element_wise(*parts, "]", "")


def plain_column(column: pa.Array, name: str) -> pa.Array:
    """A column as plain text, nulls kept: what a flat field or a key holds."""
    column = _unwrapped(column)
    kind = column.type
    if isinstance(kind, pa.JsonType):
        text = _texts_of(column.storage, lambda value: json.loads(value) if value[:1] == '"' else value)
    elif pt.is_floating(kind):
        text = _float_column(column)
    elif pt.is_decimal(kind):
        text = _decimal_column(column)
    elif pt.is_timestamp(kind):
        utc = column.cast(pa.timestamp(kind.unit, "UTC")) if kind.tz else column
        text = pc.replace_substring(utc.cast(pa.string()), " ", "T")
    elif _is_binary(kind):
        text = _texts_of(column, lambda value: b64encode(value).decode())
    elif isinstance(kind, pa.UuidType):
        text = _texts_of(column, str)
    elif pt.is_nested(kind) or pt.is_duration(kind) or isinstance(kind, pa.BaseExtensionType):
        text = pc.if_else(column.is_valid(), json_column(column, name), None)
    else:
        text = column.cast(pa.string())
    return text


def json_column(column: pa.Array, name: str) -> pa.Array:
    """A column as JSON text, one value per row, null as ``null``."""
    column = _unwrapped(column)
    kind = column.type
    if _is_text(column):
        text = _quoted(column.cast(pa.string()))
    elif pt.is_integer(kind):
        text = _exact_integers(column)
    elif pt.is_floating(kind):
        plain = _float_column(column)
        text = pc.if_else(pc.is_finite(column), plain, _in_quotes(plain))
    elif isinstance(kind, pa.JsonType):
        text = column.storage.cast(pa.string())
    elif pt.is_boolean(kind) or pt.is_null(kind):
        text = plain_column(column, name)
    elif pt.is_struct(kind):
        text = json_objects(dict(zip([field.name for field in kind], column.flatten(), strict=True)), len(column))
    elif pt.is_map(kind):
        text = _map_column(column, name)
    elif pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        text = _list_column(column, name)
    elif pt.is_decimal(kind) or _is_clock(kind) or _is_binary(kind) or isinstance(kind, pa.UuidType):
        text = _in_quotes(plain_column(column, name))
    else:
        raise UsageError(f"column {name}: the Arrow type {kind} has no canonical text", hint="cast the column first")
    return pc.if_else(column.is_valid(), text, "null").fill_null("null")


def _unwrapped(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One plain chunk: dictionaries and runs decoded."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pt.is_dictionary(column.type):
        return column.dictionary_decode()
    if pt.is_run_end_encoded(column.type):
        return pc.run_end_decode(column)
    return column


def _is_text(column: pa.Array) -> bool:
    return bool(pt.is_string(column.type) or pt.is_large_string(column.type) or pt.is_string_view(column.type))


def _is_binary(kind: pa.DataType) -> bool:
    return pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind) or pt.is_binary_view(kind)


def _is_clock(kind: pa.DataType) -> bool:
    return pt.is_date(kind) or pt.is_time(kind) or pt.is_timestamp(kind)


def _texts_of(column: pa.Array, text: Callable[[Any], str]) -> pa.Array:
    return pa.array([None if value is None else text(value) for value in column.to_pylist()], pa.string())


def _in_quotes(text: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise('"', text, '"', "")


def _quoted(text: pa.Array) -> pa.Array:
    """Texts as JSON strings; escaped one by one only where one of them needs it."""
    if not pc.any(pc.match_substring_regex(text, '["\\\\\\x00-\\x1f]')).as_py():
        return _in_quotes(text)
    return _texts_of(text, encode_basestring)


def _exact_integers(column: pa.Array) -> pa.Array:
    text = column.cast(pa.string())
    if column.type.bit_width < 64:
        return text
    beyond = pc.greater(column, pa.scalar(EXACT_INTEGER_MAX, column.type))
    if pt.is_signed_integer(column.type):
        beyond = pc.or_(beyond, pc.less(column, -EXACT_INTEGER_MAX))
    return pc.if_else(beyond, _in_quotes(text), text)


def _float_column(column: pa.Array) -> pa.Array:
    column = column.cast(pa.float64())
    infinite = pc.if_else(pc.greater(column, 0), "Infinity", "-Infinity")
    text = pc.if_else(pc.is_inf(column), infinite, column.cast(pa.string()))
    return pc.if_else(pc.is_nan(column), "NaN", text)


def _decimal_column(column: pa.Array) -> pa.Array:
    text = column.cast(pa.string())
    if not pc.any(pc.match_substring(text, "E")).as_py():
        return text
    return _texts_of(text, lambda value: format(Decimal(value), "f"))


def _list_column(column: pa.Array, name: str) -> pa.Array:
    if pt.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_field))
    joined = _joined(column.offsets, json_column(column.values, name))
    return pc.binary_join_element_wise("[", joined, "]", "")


def _map_column(column: pa.Array, name: str) -> pa.Array:
    names = _quoted(plain_column(column.keys, name))
    pairs = pc.binary_join_element_wise(names, json_column(column.items, name), ":")
    return pc.binary_join_element_wise("{", _joined(column.offsets, pairs), "}", "")


def _joined(offsets: pa.Array, texts: pa.Array) -> pa.Array:
    lists = pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), texts)
    return pc.binary_join(lists.cast(pa.list_(pa.string())), ",")

"""An Arrow answer as rows of Python's own types, as DuckDB's ``fetchall`` gives them. Pure.

Guarantees: an integer is an int whatever its width, a decimal a Decimal with its digits, an instant with a zone an
aware datetime in UTC; what Python has no value for (the year 290000, 24:00) is its text. Must never round: nanoseconds
beyond the microsecond are cut, as ``fetchall`` cuts them. Inside a struct a UUID is text and a HUGEINT a Decimal.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from replicator.query_formats import DUCKDB_TYPE

MONTH_DAYS = 30
DAY_MICROS = 86_400_000_000
_EPOCH = dt.datetime(1970, 1, 1)
_LIST_OF = re.compile(r"\[\d*\]$")
_INFINITE_DATE, _INFINITE_INSTANT = 2**31 - 1, 2**63 - 1


def python_rows(table: pa.Table) -> list[tuple[Any, ...]]:
    """All rows. The fields of the schema carry DuckDB's types where Arrow alone does not say enough."""
    if not table.num_columns:
        return []
    columns = []
    for place, field in enumerate(table.schema):
        kind = (field.metadata or {}).get(DUCKDB_TYPE, b"").decode()
        columns.append([value for chunk in table.column(place).chunks for value in _values(chunk, kind)])
    return list(zip(*columns, strict=True))


def _values(array: pa.Array, kind: str) -> list[Any]:
    """``kind`` is DuckDB's name of the type, empty where it is not known."""
    arrow = array.type
    if pt.is_struct(arrow):
        return _structs(array)
    if pt.is_map(arrow):
        pairs = list(zip(_values(array.keys, ""), _values(array.items, ""), strict=True))
        return [None if part is None else dict(pairs[part]) for part in _parts(array)]
    if pt.is_list(arrow) or pt.is_large_list(arrow):
        items = _values(array.values, _LIST_OF.sub("", kind))
        return [None if part is None else items[part] for part in _parts(array)]
    if pt.is_fixed_size_list(arrow):
        items, size, first = _values(array.values, _LIST_OF.sub("", kind)), arrow.list_size, array.offset
        return [
            tuple(items[(first + row) * size : (first + row + 1) * size]) if valid else None
            for row, valid in enumerate(array.is_valid().to_pylist())
        ]
    convert = _CONVERSIONS.get(kind) or (_interval if pt.is_interval(arrow) else None)
    if convert is not None:
        return [None if value is None else convert(value) for value in array.to_pylist()]
    return _instants(array) if pt.is_temporal(arrow) else array.to_pylist()


def _structs(array: pa.StructArray) -> list[dict[str, Any] | None]:
    names = [array.type.field(place).name for place in range(array.type.num_fields)]
    rows = zip(*(_values(column, "") for column in array.flatten()), strict=True)
    valid = array.is_valid().to_pylist()
    return [dict(zip(names, row, strict=True)) if there else None for row, there in zip(rows, valid, strict=True)]


def _parts(array: pa.ListArray | pa.MapArray) -> Iterator[slice | None]:
    """Where each row's items stand among all of them."""
    bounds = array.offsets.to_pylist()
    for place, valid in enumerate(array.is_valid().to_pylist()):
        yield slice(bounds[place], bounds[place + 1]) if valid else None


# ── days, times of day, instants ──


def _instants(array: pa.Array) -> list[Any]:
    kind = array.type
    if pt.is_date(kind):
        return [None if value is None else _day(value) for value in array.cast(pa.int32()).to_pylist()]
    if pt.is_time(kind):
        micros = array.cast(pa.time64("us"), safe=False).cast(pa.int64()).to_pylist()
        return [None if value is None else _time(value) for value in micros]
    micros = array.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64()).to_pylist()
    zone = dt.UTC if kind.tz else None
    return [None if value is None else _instant(value, zone) for value in micros]


def _day(days: int) -> dt.date | str:
    if abs(days) == _INFINITE_DATE:
        return dt.date.max if days > 0 else dt.date.min
    try:
        return _EPOCH.date() + dt.timedelta(days=days)
    except OverflowError:
        return str(np.datetime64(days, "D"))


def _time(micros: int) -> dt.time | str:
    return "24:00:00" if micros >= DAY_MICROS else (_EPOCH + dt.timedelta(microseconds=micros)).time()


def _instant(micros: int, zone: dt.tzinfo | None) -> dt.datetime | str:
    if abs(micros) == _INFINITE_INSTANT:
        return (dt.datetime.max if micros > 0 else dt.datetime.min).replace(tzinfo=zone)
    try:
        return (_EPOCH + dt.timedelta(microseconds=micros)).replace(tzinfo=zone)
    except OverflowError:
        return str(np.datetime64(micros, "us")).replace("T", " ")


def _interval(value: Any) -> dt.timedelta:
    days = value.months * MONTH_DAYS + value.days
    return dt.timedelta(days=days, microseconds=value.nanoseconds // 1000)


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "HUGEINT": int,
    "UHUGEINT": int,
    "UUID": UUID,
    "TIME WITH TIME ZONE": dt.time.fromisoformat,
}

"""Rows of Python values to Arrow columns, for the batches a program sends.

Guarantees: a column whose values share one exact Arrow type gets it; any other becomes canonical JSON, value by
value, so that nothing is widened, rounded or blanked. A field that a row does not have is null.
Must never infer from the first row alone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa

from replicator.canonical import canonical_value, plain_value, refusal

_EXACT: dict[type, pa.DataType | None] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    bytes: pa.binary(),
    dt.date: pa.date32(),
    dt.datetime: pa.timestamp("us", "UTC"),
    Decimal: None,
}


def batch_of_rows(rows: Sequence[Mapping[str, Any]], where: str) -> pa.RecordBatch:
    """Rows as one batch; columns stand in the order in which they first appear."""
    names: dict[str, None] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise refusal(f"{where}[{number}]", row, "is no row", "give each row as a mapping of column to value")
        names.update(dict.fromkeys(row))
    for name in names:
        if not isinstance(name, str) or not name:
            raise refusal(where, name, "is no column name", "name columns with text")
    columns = [_column([row.get(name) for row in rows], f"{where}.{name}") for name in names]
    return pa.RecordBatch.from_arrays(columns, names=list(names))


def _column(values: list[Any], path: str) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    kind = next(iter(kinds)) if len(kinds) == 1 else None
    if kind is UUID:
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    if kind in _EXACT and not (kind is dt.datetime and any(value and not value.tzinfo for value in values)):
        try:
            return pa.array(values, _EXACT[kind])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError):
            pass  # no exact type after all: what follows keeps the values, or names the one at fault
    if kinds and kinds <= {str, Decimal}:
        return pa.array([None if value is None else plain_value(value, path) for value in values], pa.string())
    if not kinds:
        return pa.nulls(len(values))
    texts = [None if value is None else canonical_value(value, f"{path}[{row}]") for row, value in enumerate(values)]
    return pa.array(texts, pa.string()).cast(pa.json_())

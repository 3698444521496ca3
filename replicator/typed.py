"""Typing changes by their table's schema, whole columns at once, as SQL for DuckDB. Pure.

Capture asks which changes fit (``check_sql``) and, for those that do not, why (``misfits_sql``); views, folding and
delivery read the typed rows of what was logged (``typed_rows_sql``). One ``from_json`` per row yields every column's
text with all its digits; each text is then checked and cast by ``typed_text``. The typed value depends on nothing
but the logged change and the schema version it was written under: never on the clock, the session's zone or settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from replicator import typed_text
from replicator.column_types import ColumnType, Kind
from replicator.default_value import plain_text
from replicator.log_columns import LEADING, TRAILING
from replicator.schema import Column, OnUnknownField, TableSchema, literal, quote

_FIELDS, _NAMES = "_fields", "_names"
_RAW_NUMBERS = "_raw"
"""A member nobody sends. A DECIMAL among the members makes from_json keep every number as written; without one,
texts of numbers have passed through a double. Source: measured on DuckDB 2.0.0, guarded by a unit test."""


def check_sql(schema: TableSchema, relation: str) -> str:
    """Rows (row_index, fits, key): whether each change fits the schema, and its canonical key (NULL without one).

    ``relation`` has row_index, op, key and payload; ``key`` is what the producer sent, used for deletes.
    """
    fits = f"case when op = 'd' then {_delete_fits(schema)} else {_row_fits(schema)} end"
    values = [typed_text.value(column.type, quote(column.name)) for column in schema.key_columns]
    key = key_text(schema, [f"try({value})" for value in values])
    return f"select row_index, {fits} as fits, {key} as key from {_cells(schema, relation)}"


def misfit_count_sql(schema: TableSchema, relation: str) -> str:
    """One row: how many changes do not fit."""
    return f"select count(*) from ({check_sql(schema, relation)}) where not fits"


def misfits_sql(schema: TableSchema, relation: str) -> str:
    """Rows (row_index, column_name, reason), one per misfit; column_name is NULL where the whole change is at fault.

    Meant for the few rows that ``check_sql`` found: it costs several times as much per row.
    """
    whole = f"{{'column_name': cast(null as varchar), 'reason': {_whole_reason(schema)}}}"
    each = [
        f"{{'column_name': {literal(column.name)}, 'reason': case when {_is_object()} then {_reason(schema, column)} end}}"
        for column in schema.columns
    ]
    found = (
        f"select row_index, unnest([{', '.join([whole, *each])}], recursive := true) from {_cells(schema, relation)}"
    )
    return f"select row_index, column_name, reason from ({found}) where reason is not null order by row_index"


def typed_rows_sql(schema: TableSchema, source: str = "change_log") -> str:
    """The rows of ``source`` (changes as ``change_log`` has them, all under this schema) as T_log shows them.

    Columns: the leading ones of ours, the table's own, the trailing ones. Of a delete only the key's are not NULL.
    """
    parsed = f"from_json(case when op <> 'd' then payload end, {_structure(schema)})"
    inner = f"select *, {parsed} as {_FIELDS} from {source}"
    ours = [[f"{column.source} as {quote(column.name)}" for column in part] for part in (LEADING, TRAILING)]
    typed = [f"{_typed(schema, column)} as {quote(column.name)}" for column in schema.columns]
    return f"select {', '.join([*ours[0], *typed, *ours[1]])} from ({inner})"


def log_rows_sql(schemas: Sequence[TableSchema], source: str = "change_log") -> str:
    """The typed history of a table over all its schema versions (oldest first), in the types of the newest.

    Each row is typed under the version it was written under; columns it did not know yet are NULL.
    """
    newest = schemas[-1]
    return " union all ".join(
        f"select {', '.join(_as_newest(schema, newest))} from ({typed_rows_sql(schema, _of_version(schema, source))})"
        for schema in schemas
    )


def key_text(schema: TableSchema, values: Sequence[str]) -> str:
    """The canonical key from its typed columns, in the key's order: one as its text, several as a JSON array."""
    texts = [_canonical(column.type, value) for column, value in zip(schema.key_columns, values, strict=True)]
    if len(texts) == 1:
        return texts[0]
    known = " and ".join(f"{text} is not null" for text in texts)
    return f"case when {known} then cast(json_array({', '.join(texts)}) as varchar) end"


def key_sql(schema: TableSchema) -> str:
    """``key_text`` over the typed columns under their own names."""
    return key_text(schema, [quote(column.name) for column in schema.key_columns])


def _of_version(schema: TableSchema, source: str) -> str:
    condition = f"table_name = {literal(schema.name)} and schema_version = {schema.schema_version}"
    return f"(select * from {source} where {condition})"


def _as_newest(schema: TableSchema, newest: TableSchema) -> list[str]:
    known = {column.name: column.type for column in schema.columns}
    ours = [[quote(column.name) for column in part] for part in (LEADING, TRAILING)]
    typed = []
    for column in newest.columns:
        name = quote(column.name)
        same = known.get(column.name) == column.type
        source = name if column.name in known else "null"
        typed.append(name if same else f"cast({source} as {column.type.duckdb}) as {name}")
    return [*ours[0], *typed, *ours[1]]


def _canonical(column_type: ColumnType, value: str) -> str:
    match column_type.kind:
        case Kind.VARCHAR:
            return value
        case Kind.BLOB:
            return f"to_base64({value})"
        case Kind.DECIMAL:
            return f"({typed_text.decimal_text(column_type, value)})"
        case Kind.TIMESTAMP if column_type.zoned:
            return f"(cast(make_timestamp(epoch_us({value})) as varchar) || '+00')"
    return f"cast({value} as varchar)"


def _structure(schema: TableSchema) -> str:
    members = {column.name: "JSON" if column.type.kind is Kind.JSON else "VARCHAR" for column in schema.columns}
    return literal(json.dumps(members | {_RAW_NUMBERS: "DECIMAL(1,0)"}, ensure_ascii=False))


def _field(column: Column) -> str:
    return f"struct_extract({_FIELDS}, {literal(column.name)})"


def _sent_key(schema: TableSchema, column: Column) -> str:
    """A key column's text out of the column ``key``."""
    if len(schema.key) == 1:
        return "key"
    return f"try(json_extract_string(key, '/{schema.key.index(column.name)}'))"


def _typed(schema: TableSchema, column: Column) -> str:
    text = _field(column)
    if schema.is_key(column):
        return typed_text.value(column.type, f"case when op = 'd' then {_sent_key(schema, column)} else {text} end")
    value = typed_text.value(column.type, text)
    if column.default is None:
        return value
    default = _default(column)
    if column.not_null:
        return f"case when op <> 'd' then coalesce({value}, {default}) end"
    missing = f"op <> 'd' and {text} is null and not list_contains(json_keys(payload), {literal(column.name)})"
    return f"case when {missing} then {default} else {value} end"


def _default(column: Column) -> str:
    text = literal(plain_text(column.type, column.default or ""))
    if column.type.kind is Kind.BLOB:
        return f"from_base64({text})"
    value = f"cast({text} as {typed_text.unzoned(column.type)})"
    return f"make_timestamptz(epoch_us({value}))" if column.type.zoned else value


def _cells(schema: TableSchema, relation: str) -> str:
    """The relation with each column's text under the column's name, and the names of the payload's members."""
    parsed = (
        f"select row_index, op, key as _key, key, payload, try(from_json(payload, {_structure(schema)})) as {_FIELDS}, "
        f"try(json_keys(payload)) as {_NAMES} from {relation}"
    )
    texts = []
    for column in schema.columns:
        text = _field(column)
        if schema.is_key(column):
            text = f"coalesce({text}, case when op = 'd' then {_sent_key(schema, column)} end)"
        texts.append(f"{text} as {quote(column.name)}")
    return f"(select row_index, op, _key, payload, {_NAMES}, {', '.join(texts)} from ({parsed}))"


def _column_fits(column: Column) -> str:
    fits = typed_text.fits(column, quote(column.name), "payload")
    required = column.not_null and column.default is None
    return f"coalesce({fits}, {'false' if required else 'true'})"


def _row_fits(schema: TableSchema) -> str:
    return " and ".join([*map(_column_fits, schema.columns), _names_fit(schema)])


def _names_fit(schema: TableSchema) -> str:
    """No member twice, and none unknown where that is refused. As many members as columns found: neither can be."""
    found = " + ".join(f"cast({quote(column.name)} is not null as int)" for column in schema.columns)
    named = " + ".join(f"cast(list_contains({_NAMES}, {literal(column.name)}) as int)" for column in schema.columns)
    rest = "false" if schema.on_unknown_field is OnUnknownField.REJECT else _distinct()
    return (
        f"case when len({_NAMES}) = {found} then true when len({_NAMES}) = {named} then true "
        f"when {_NAMES} is null then false else {rest} end"
    )


def _distinct() -> str:
    return f"len({_NAMES}) = len(list_distinct({_NAMES}))"


def _delete_fits(schema: TableSchema) -> str:
    keys = [_column_fits(column) for column in schema.key_columns]
    payload = f"(payload is null or ({_is_object()} and {_distinct()}))"
    return " and ".join([*keys, payload])


def _is_object() -> str:
    """Also true of a delete without a payload: its key is all it needs."""
    return "case when payload is null then op = 'd' else coalesce(try(json_type(payload)) = 'OBJECT', false) end"


def _whole_reason(schema: TableSchema) -> str:
    repeated = f"list_distinct(list_filter({_NAMES}, lambda x: len(list_filter({_NAMES}, lambda y: y = x)) > 1))"
    columns = ", ".join(literal(column.name) for column in schema.columns)
    unknown = f"list_filter({_NAMES}, lambda x: x not in ({columns}))"
    branches = [
        ("payload is null and op <> 'd'", "'has no payload'"),
        ("payload is not null and try(json_type(payload)) is null", "'the payload is not JSON'"),
        (f"not {_is_object()}", "'the payload is not a JSON object'"),
        (f"not {_distinct()}", f"'names a field twice: ' || array_to_string({repeated}, ', ')"),
    ]
    if schema.on_unknown_field is OnUnknownField.REJECT:
        advice = "on_unknown_field is reject: declare the column or leave the field out"
        complaint = f"'has unknown fields: ' || array_to_string({unknown}, ', ') || {literal(f' ({advice})')}"
        branches.append((f"op <> 'd' and len({unknown}) > 0", complaint))
    return "case " + " ".join(f"when {condition} then {text}" for condition, text in branches) + " end"


def _reason(schema: TableSchema, column: Column) -> str:
    name, is_key = quote(column.name), schema.is_key(column)
    absent = f"list_contains({_NAMES}, {literal(column.name)})"
    null = "is null, but it belongs to the key" if is_key else "is null, but the column is NOT NULL"
    missing = (
        "is missing, but it belongs to the key"
        if is_key
        else "is missing, but the column is NOT NULL without a default"
    )
    shown = typed_text.shown(f"cast({name} as varchar)")
    wrong = f"{shown} || ' ' || {typed_text.reason(column, name, 'payload')}"
    if column.not_null and column.default is None:
        wrong = f"case when {name} is null then case when {absent} then {literal(null)} else {literal(missing)} end else {wrong} end"
    return wrong if is_key else f"case when op <> 'd' then {wrong} end"

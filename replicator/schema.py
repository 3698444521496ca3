"""One declared table described once: its columns, its key, and how it may change.

Guarantees that a ``TableSchema`` which exists is exact on both sides, that its definition survives a round trip
through text, and that every problem of a declaration is reported at once. It must never touch a database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

from attrs import evolve, field, frozen

from replicator.column_types import ColumnType, Kind, parse_type, widens
from replicator.default_value import default_problem
from replicator.errors import ConfigError
from replicator.own_tables import is_ours

_TABLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
COLUMN_KEYS = ("type", "not_null", "default", "round")
"""What a column's declaration may say."""
_UNFIT_AS_KEY = (Kind.FLOAT, Kind.JSON)
_COLUMN_TEXT = re.compile(
    r"(?P<type>.*?)(?P<not_null>\s+NOT\s+NULL)?(?:\s+DEFAULT\s+(?P<default>'(?:[^']|'')*'|[^\s']+))?(?P<late>\s+NOT\s+NULL)?",
    re.IGNORECASE | re.DOTALL,
)


class OnUnknownField(StrEnum):
    """What happens to a field that no column declares."""

    KEEP = "keep"
    REJECT = "reject"


@frozen(kw_only=True)
class Column:
    """One typed column. ``default`` is the text a producer could have sent; it stands in where the field is missing."""

    name: str
    type: ColumnType
    not_null: bool = False
    default: str | None = None
    round: bool = False


@frozen(kw_only=True)
class TableSchema:
    """A declared table at one ``schema_version``. Key columns are never NULL."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    on_unknown_field: OnUnknownField = OnUnknownField.KEEP
    schema_version: int = 1

    @property
    def log_name(self) -> str:
        return f"{self.name}_log"

    @property
    def state_name(self) -> str:
        return f"{self.name}_state"

    @property
    def as_of_name(self) -> str:
        return f"{self.name}_as_of"

    @property
    def as_of_time_name(self) -> str:
        return f"{self.name}_as_of_time"

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """The key's columns, in the key's order."""
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in self.key)

    def is_key(self, column: Column) -> bool:
        return column.name in self.key

    def at_version(self, schema_version: int) -> TableSchema:
        return evolve(self, schema_version=schema_version)


@frozen(kw_only=True)
class SchemaChange:
    """What an edited declaration asks for. ``refusals`` non-empty: none of it may be done."""

    added: tuple[Column, ...] = ()
    widened: tuple[Column, ...] = ()
    """Columns, as they are to become, whose type grows."""
    settings: tuple[str, ...] = ()
    """What else changed, in words: it raises the version without an ALTER."""
    refusals: tuple[str, ...] = field(default=())

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.widened or self.settings or self.refusals)

    @property
    def needs_alter(self) -> bool:
        return bool(self.added or self.widened)


@frozen(kw_only=True)
class DeclaredSums:
    """``columns`` are summed, exactly, for each value of the columns ``by``, on both sides."""

    columns: tuple[str, ...]
    by: tuple[str, ...]


def declared_sums(schema: TableSchema, columns: Sequence[str], by: Sequence[str]) -> DeclaredSums | None:
    """What a table declares as ``sums`` and ``by``, None when neither; raises ConfigError for what has no exact sum."""
    inexact = [c for c in schema.columns if c.name in columns and c.type.kind not in (Kind.INTEGER, Kind.DECIMAL)]
    if inexact:
        raise ConfigError([f"sums: {c.name!r} is {c.type}: only integers and decimals add up exactly" for c in inexact])
    return DeclaredSums(columns=tuple(columns), by=tuple(by)) if columns or by else None


def quote(identifier: str) -> str:
    """An identifier for DuckDB."""
    return '"' + identifier.replace('"', '""') + '"'


def quote_clickhouse(identifier: str) -> str:
    """An identifier for ClickHouse."""
    return "`" + identifier.replace("\\", "\\\\").replace("`", "\\`") + "`"


def literal(text: str) -> str:
    """A string constant for DuckDB."""
    return "'" + text.replace("'", "''") + "'"


def literal_clickhouse(text: str) -> str:
    """A string constant for ClickHouse."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def table_schema(
    name: str,
    columns: Mapping[str, str | Mapping[str, object]],
    key: Sequence[str],
    on_unknown_field: str = "keep",
    schema_version: int = 1,
) -> TableSchema:
    """A checked schema from what the configuration says; raises ConfigError with every problem found."""
    problems = list(_name_problems(name))
    parsed, wrong = parse_columns(columns)
    problems += wrong
    problems += _set_problems(list(columns), key, parsed)
    if on_unknown_field not in tuple(OnUnknownField):
        problems.append(f"on_unknown_field = {on_unknown_field!r}: choose 'keep' or 'reject'")
    if problems:
        raise ConfigError([f"table {name!r}: {problem}" for problem in problems])
    return TableSchema(
        name=name,
        columns=tuple(evolve(one, not_null=one.not_null or one.name in key) for one in parsed),
        key=tuple(key),
        on_unknown_field=OnUnknownField(on_unknown_field),
        schema_version=schema_version,
    )


def parse_columns(columns: Mapping[str, str | Mapping[str, object]]) -> tuple[list[Column], list[str]]:
    """The columns that are declared well, and what is wrong with the others."""
    parsed, problems = [], []
    for name, declared in columns.items():
        try:
            parsed.append(_column(name, declared))
        except ConfigError as error:
            problems += [f"column {name!r}: {problem}" for problem in error.problems]
    return parsed, problems


def table_name_problems(names: Sequence[str]) -> list[str]:
    """Clashes between declared tables: each claims T, T_log and T_state on both sides, whatever the case."""
    problems: list[str] = []
    owners: dict[str, str] = {}
    for name in names:
        for claimed in (name, f"{name}_log", f"{name}_state"):
            other = owners.get(claimed.lower())
            if other is not None:
                problems.append(f"tables {other!r} and {name!r} both need the name {claimed!r}: rename one of them")
            owners[claimed.lower()] = name
    return problems


def _name_problems(name: str) -> Iterable[str]:
    if not _TABLE_NAME.fullmatch(name):
        yield "a table's name starts with a letter and holds letters, digits and _ (at most 100): rename it"
    if any(is_ours(each) for each in (name, f"{name}_log", f"{name}_state")):
        yield "this name belongs to the replicator's own tables: rename it"


def _set_problems(declared: Sequence[str], key: Sequence[str], parsed: Sequence[Column]) -> Iterable[str]:
    seen: dict[str, str] = {}
    for name in declared:
        if not name or name.startswith("_") or "\0" in name:
            yield f"column {name!r}: a name is not empty, holds no NUL and does not start with _ (kept for our columns)"
        if (other := seen.setdefault(name.lower(), name)) != name:
            yield f"columns {other!r} and {name!r} differ only in case, which DuckDB does not tell apart: rename one"
    if not declared:
        yield "has no columns: declare at least the key's"
    if not key:
        yield "has no key: name the columns that identify a row, key = [...]"
    if len(set(key)) < len(key):
        yield f"key {list(key)} names a column twice"
    for name in key:
        if name not in declared:
            yield f"key column {name!r} is not among the columns: declare it"
    for column in parsed:
        if column.name in key and column.type.kind in _UNFIT_AS_KEY:
            yield f"key column {column.name!r} is {column.type}, which has no single text per value: use another type"
        if column.name in key and column.default is not None:
            yield f"key column {column.name!r} has a default: a key must be sent, so leave the default out"


def _column(name: str, declared: str | Mapping[str, object]) -> Column:
    if isinstance(declared, str):
        match = _COLUMN_TEXT.fullmatch(declared.strip())
        if match is None:
            raise ConfigError(f"{declared!r}: write TYPE [NOT NULL] [DEFAULT literal]")
        default = match["default"]
        settings: dict[str, object] = {
            "type": match["type"],
            "not_null": bool(match["not_null"] or match["late"]),
            "default": None if default is None or default.upper() == "NULL" else _unquoted(default),
        }
    else:
        settings = dict(declared)
    return _column_from(name, settings)


def _column_from(name: str, settings: Mapping[str, object]) -> Column:
    problems = [
        f"unknown setting {key!r}: known are {', '.join(COLUMN_KEYS)}" for key in settings if key not in COLUMN_KEYS
    ]
    flags = {key: settings.get(key, False) for key in ("not_null", "round")}
    problems += [f"{key} = {value!r}: write true or false" for key, value in flags.items() if type(value) is not bool]
    declared_type = settings.get("type")
    if not isinstance(declared_type, str):
        raise ConfigError([*problems, "has no type: type = 'VARCHAR', for example"])
    try:
        column_type = parse_type(declared_type)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    default = _default_text(settings.get("default"))
    if default is not None and (reason := default_problem(column_type, default)):
        problems.append(f"default {default!r} {reason}: a default is a literal that fits {column_type}")
    if flags["round"] and column_type.kind is not Kind.DECIMAL:
        problems.append(f"round = true fits DECIMAL only, not {column_type}: leave it out")
    if problems:
        raise ConfigError(problems)
    return Column(
        name=name, type=column_type, not_null=bool(flags["not_null"]), default=default, round=bool(flags["round"])
    )


def _unquoted(text: str) -> str:
    return text[1:-1].replace("''", "'") if text.startswith("'") else text


def _default_text(value: object) -> str | None:
    """A TOML value as the text a producer would send."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return None if value is None else str(value)


def definition(schema: TableSchema) -> str:
    """The schema as JSON text, for ``table_schemas.definition``; the version is a column of its own there."""
    columns = {
        column.name: {
            "type": column.type.duckdb,
            "not_null": column.not_null,
            "default": column.default,
            "round": column.round,
        }
        for column in schema.columns
    }
    stored = {
        "name": schema.name,
        "columns": columns,
        "key": list(schema.key),
        "on_unknown_field": str(schema.on_unknown_field),
    }
    return json.dumps(stored, ensure_ascii=False)


def from_definition(text: str, schema_version: int) -> TableSchema:
    """The schema that ``definition`` wrote."""
    stored = json.loads(text)
    return table_schema(
        stored["name"], stored["columns"], stored["key"], stored["on_unknown_field"], schema_version=schema_version
    )


def compare(old: TableSchema, new: TableSchema) -> SchemaChange:
    """What turning ``old`` into ``new`` takes. Columns are added and types widened; all else is refused."""
    assert old.name == new.name
    before = {column.name: column for column in old.columns}
    after = {column.name: column for column in new.columns}
    kept = [(before[name], after[name]) for name in before if name in after]
    way_out = f"undo the edit, or run `replicator rebuild {new.name}`"
    refusals = [f"column {name!r} was removed: {way_out}" for name in before if name not in after]
    if old.key != new.key:
        refusals.append(f"the key changed from {list(old.key)} to {list(new.key)}: {way_out}")
    refusals += [
        refusal for pair in kept for refusal in _refusals(*pair, is_key=pair[0].name in old.key, way_out=way_out)
    ]
    settings = [text for pair in kept for text in _changed_settings(*pair)]
    if old.on_unknown_field != new.on_unknown_field:
        settings.append(f"on_unknown_field = {str(new.on_unknown_field)!r}")
    return SchemaChange(
        added=tuple(column for name, column in after.items() if name not in before),
        widened=tuple(second for first, second in kept if first.type != second.type),
        settings=tuple(settings),
        refusals=tuple(f"table {new.name!r}: {refusal}" for refusal in refusals),
    )


def _refusals(old: Column, new: Column, *, is_key: bool, way_out: str) -> Iterable[str]:
    if is_key and old.type != new.type:
        yield f"key column {old.name!r} changed from {old.type} to {new.type}: {way_out}"
    elif not widens(old.type, new.type):
        yield f"column {old.name!r} changed from {old.type} to {new.type}, which cannot hold every old value: {way_out}"
    if new.not_null and not old.not_null:
        yield f"column {old.name!r} became NOT NULL, but logged rows may lack it: {way_out}"


def _changed_settings(old: Column, new: Column) -> Iterable[str]:
    checks: tuple[tuple[str, Callable[[Column], object]], ...] = (
        ("not_null", lambda column: column.not_null),
        ("default", lambda column: column.default),
        ("round", lambda column: column.round),
    )
    for name, read in checks:
        if read(old) != read(new):
            yield f"column {new.name!r}: {name} = {read(new)!r}"

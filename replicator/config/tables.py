"""The declared tables: each on its own, then against each other and against the names that are taken.

Names and keys only; what a column's type means is ``schema``'s to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from attrs import evolve

from replicator.config.checks import WrongValueError, shown, shown_key
from replicator.config.layers import PIPELINE_FILE, Document, Sourced
from replicator.config.resolve import Resolver, Spot
from replicator.config.values import Profile, Redis, Setting, TableConfig, written_keys
from replicator.own_tables import is_ours

DERIVED_SUFFIXES = ("_log", "_state")


def read_tables(resolver: Resolver, document: Document) -> tuple[TableConfig, ...]:
    """Every ``[[tables]]`` entry that could be understood; problems go to the resolver."""
    written = document.tables.get("tables", [])
    if not isinstance(written, list) or not all(isinstance(entry, dict) for entry in written):
        resolver.findings.problems.append(
            f"{document.path} tables = {shown(written)}: is not a list of tables; begin each with the line [[tables]]"
        )
        return ()
    tables = []
    for index, entry in enumerate(written):
        if table := _read_table(resolver, document, index, entry):
            tables.append(table)
            _check_columns(resolver, document, table)
    _check_names(resolver, document, tables)
    return tuple(tables)


def column_problems(path: str, tables: Iterable[TableConfig]) -> list[str]:
    """What is wrong with the columns' types. Loads Arrow, so it is asked only where something else is wrong already."""
    from replicator.schema import parse_columns  # noqa: PLC0415 - commands that only ask the service need none of it

    return [
        f"{path} [{section_of(table.name)}] columns: {problem}"
        for table in tables
        for problem in parse_columns(table.columns)[1]
    ]


def _read_table(resolver: Resolver, document: Document, index: int, entry: dict[str, Any]) -> TableConfig | None:
    name = entry.get("name")
    label = section_of(name) if isinstance(name, str) and name else f"tables[{index}]"
    spot = Spot(kind=TableConfig, role=PIPELINE_FILE, name=label, place=f"{document.path} [{label}]")
    values = {key: Sourced(value=value, source="file", place=spot.place) for key, value in entry.items()}
    values.setdefault("stream", Sourced(value=_default_stream(name), source="default", place=spot.place))
    return resolver.judge(spot, values, {})


def _default_stream(name: Any) -> Any:
    """The table's name; a harmless one where that is itself wrong, so that it is reported once."""
    try:
        return written_keys(TableConfig)["name"].check(name)
    except WrongValueError:
        return "unnamed"


def section_of(name: str) -> str:
    return f"tables.{shown_key(name)}"


def _check_columns(resolver: Resolver, document: Document, table: TableConfig) -> None:
    """Key, ``sums`` and ``by`` name declared columns, where columns are declared."""
    if not table.columns:
        return
    label = section_of(table.name)
    for key in ("key", "sums", "by"):
        missing = [name for name in getattr(table, key) if name not in table.columns]
        if missing:
            resolver.clash(
                f"{document.path} [{label}] {key}: names {', '.join(missing)}, which [tables.columns] does not "
                f"declare; declare it there, or correct {key}",
                (PIPELINE_FILE, label, key),
                (PIPELINE_FILE, label, "columns"),
            )


def _check_names(resolver: Resolver, document: Document, tables: list[TableConfig]) -> None:
    """No table takes a name of ours or of another's, in any case; no two tables read the same stream."""
    problems = resolver.findings.problems
    names: dict[str, str] = {}
    streams: dict[str, str] = {}
    for table in tables:
        place = f"{document.path} [{section_of(table.name)}] name = {shown(table.name)}"
        if table.name.startswith("_"):
            problems.append(f"{place}: begins with an underscore, as only our own names do; rename the table")
        for used in _names_of(table):
            if is_ours(used):
                problems.append(f"{place}: {used} is the name of a table of ours; rename the table")
                break
            if used in names:
                problems.append(
                    f"{place}: {used} is already taken by table {names[used]} (each table T also makes "
                    "T_log and T_state, and case does not count); rename one of them"
                )
                break
        for used in _names_of(table):
            names.setdefault(used, table.name)
        if table.stream in streams:
            problems.append(
                f"{document.path} [{section_of(table.name)}] stream = {shown(table.stream)}: table "
                f"{streams[table.stream]} has this stream already; give each table its own (an entry of a shared "
                "stream names its table in its field `table`)"
            )
        streams.setdefault(table.stream, table.name)


def _names_of(table: TableConfig) -> Iterator[str]:
    folded = table.name.casefold()
    yield folded
    yield from (folded + suffix for suffix in DERIVED_SUFFIXES)


def check_failed_sync_table(resolver: Resolver, role: str, profile: Profile, tables: tuple[TableConfig, ...]) -> None:
    """The configured name of ``failed_syncs`` is not the name of anything else."""
    written = profile.error_handling.failed_sync_table
    name = written.casefold()
    taken = name != "failed_syncs" and is_ours(name)
    if taken or name.startswith("_") or name in {used for table in tables for used in _names_of(table)}:
        resolver.clash(
            f"{profile.config_path} [error_handling] failed_sync_table = {shown(written)}: this name is taken by "
            "another table or reserved; choose another",
            (role, "error_handling", "failed_sync_table"),
        )


def resolve_streams(resolver: Resolver, document: Document, redis: Redis, tables: tuple[TableConfig, ...]) -> Redis:
    """The streams to read: those listed, else those the tables name."""
    if not redis.streams:
        if not tables:
            resolver.warn(
                f"{document.path} [redis] streams: no stream is named and no table declared, so nothing would be "
                "captured; name streams or declare a table"
            )
        resolver.sources.pop((PIPELINE_FILE, "redis", "streams"), None)
        return evolve(redis, streams=tuple(dict.fromkeys(table.stream for table in tables)))
    for table in tables:
        if table.stream in redis.streams:
            continue
        label = section_of(table.name)
        if resolver.sources.get((PIPELINE_FILE, label, "stream")) == "file":
            resolver.clash(
                f"{document.path} [{label}] stream = {shown(table.stream)}: is not among [redis] streams, so it would "
                "never be read; add it there, or remove [redis] streams",
                (PIPELINE_FILE, "redis", "streams"),
            )
        else:
            resolver.warn(
                f"{document.path} [{label}]: its stream {shown(table.stream)} is not among [redis] streams; only "
                "entries that name this table in their field `table` will reach it"
            )
    return redis


def explain_tables(resolver: Resolver, tables: tuple[TableConfig, ...]) -> list[Setting]:
    return [row for table in tables for row in resolver.explain(PIPELINE_FILE, section_of(table.name), table)]

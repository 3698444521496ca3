"""The statements that give a declared table its place in ClickHouse, and what it must look like there. Pure.

Every statement may be run again. T_log holds each change once per pipeline and offset; a materialized view feeds
T_state, where the highest version of a key wins whatever the order of arrival; T shows it without the deleted keys.
Nothing is partitioned, so that every merge and every FINAL sees all rows of a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replicator.log_columns import IN_STATE, LEADING, PIPELINE, SEND, TRAILING, LogColumn
from replicator.schema import Column, TableSchema, quote_clickhouse

DEDUPLICATION_WINDOW = 10_000
"""Blocks whose tokens a table remembers; the default of 0 ignores tokens."""
_IS_DELETED = "_is_deleted"
_OURS: Mapping[str, LogColumn] = {column.name: column for column in (PIPELINE, *LEADING, *TRAILING, SEND)}


def create_statements(schema: TableSchema, log_ttl_days: int | None = None) -> list[str]:
    """Statements that create T_log, T_state, the view between them and T, in this order."""
    return [_create_log(schema, log_ttl_days), _create_state(schema), _create_feed(schema), create_view(schema)]


def alter_statements(old: TableSchema, new: TableSchema) -> list[str]:
    """Statements that turn ``old``'s tables into ``new``'s; ``compare`` has allowed the change.

    Run at the barrier, with no insert of this table in flight: between the first and the last of them the feed
    still carries the old columns.
    """
    tables = [sql for name in (new.log_name, new.state_name) for sql in alter_table(name, old, new)]
    return [*tables, *_view_statements(new)] if tables else []


def alter_table(name: str, old: TableSchema, new: TableSchema) -> list[str]:
    """The statement that turns T_log or T_state of ``old`` into that of ``new``; none where nothing changes."""
    actions = _alter_actions(old, new)
    return [f"alter table {quote_clickhouse(name)} {', '.join(actions)}"] if actions else []


def renew_statements(schema: TableSchema, log_ttl_days: int | None = None) -> list[str]:
    """Statements that create what is missing, and give both views the columns that T_log and T_state have by now."""
    return [*create_statements(schema, log_ttl_days)[:3], *_view_statements(schema)]


def _view_statements(schema: TableSchema) -> list[str]:
    feed = f"alter table {quote_clickhouse(feed_name(schema))} modify query {_feed_query(schema)}"
    return [feed, create_view(schema)]


def drop_statements(schema: TableSchema) -> list[str]:
    """Statements that remove all four, for tests and for a table that is given up."""
    views = (schema.name, feed_name(schema))
    tables = (schema.state_name, schema.log_name)
    return [f"drop view if exists {quote_clickhouse(name)} sync" for name in views] + [
        f"drop table if exists {quote_clickhouse(name)} sync" for name in tables
    ]


def feed_name(schema: TableSchema) -> str:
    """The materialized view from T_log to T_state."""
    return f"{schema.name}_feed"


def expected_columns(schema: TableSchema) -> dict[str, str]:
    """T_log's columns and their types as ``system.columns`` spells them; anything else there is drift."""
    ours = [{column.name: column.clickhouse for column in part} for part in ([PIPELINE], LEADING, TRAILING, [SEND])]
    return ours[0] | ours[1] | _typed_columns(schema) | ours[2] | ours[3]


def expected_state_columns(schema: TableSchema) -> dict[str, str]:
    """The same for T_state."""
    ours = {name: _OURS[name].clickhouse for name in (PIPELINE.name, *IN_STATE)}
    return _typed_columns(schema) | ours | {_IS_DELETED: "UInt8"}


def drift(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """How a table in ClickHouse differs from what we expect of it, one sentence each."""
    missing = [f"column {name!r} ({kind}) is missing" for name, kind in expected.items() if name not in found]
    surplus = [f"column {name!r} ({kind}) is not ours" for name, kind in found.items() if name not in expected]
    changed = [
        f"column {name!r} is {found[name]}, not {kind}"
        for name, kind in expected.items()
        if name in found and found[name] != kind
    ]
    return missing + changed + surplus


def _typed_columns(schema: TableSchema) -> dict[str, str]:
    return {column.name: _column_type(schema, column) for column in schema.columns}


def _column_type(schema: TableSchema, column: Column) -> str:
    """Only key columns are plain: a delete has nothing else."""
    return column.type.clickhouse if schema.is_key(column) else f"Nullable({column.type.clickhouse})"


def _column_lines(columns: Mapping[str, str]) -> str:
    return ",\n".join(f"    {quote_clickhouse(name)} {kind}" for name, kind in columns.items())


def _settings(**more: int) -> str:
    settings = {
        "non_replicated_deduplication_window": DEDUPLICATION_WINDOW,
        "fsync_after_insert": 1,
        "fsync_part_directory": 1,
    } | more
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def ttl_expression(logged_at: str, days: int) -> str:
    """When a row has been kept for so many days."""
    return f"toDateTime({logged_at}) + interval {days:d} day"


def _create_log(schema: TableSchema, log_ttl_days: int | None) -> str:
    ttl = f"\nttl {ttl_expression('_logged_at', log_ttl_days)}" if log_ttl_days else ""
    return (
        f"create table if not exists {quote_clickhouse(schema.log_name)}\n(\n"
        f"{_column_lines(expected_columns(schema))}\n)\n"
        f"engine = ReplacingMergeTree(_send)\norder by (_pipeline, _offset){ttl}\nsettings {_settings()}"
    )


def _create_state(schema: TableSchema) -> str:
    key = ", ".join(quote_clickhouse(name) for name in schema.key)
    return (
        f"create table if not exists {quote_clickhouse(schema.state_name)}\n(\n"
        f"{_column_lines(expected_state_columns(schema))}\n)\n"
        f"engine = ReplacingMergeTree(_version, {_IS_DELETED})\norder by ({key})\nsettings {_settings()}"
    )


def _feed_query(schema: TableSchema) -> str:
    names = [*(column.name for column in schema.columns), PIPELINE.name, *IN_STATE]
    columns = _listed(names)
    return f"select {columns}, toUInt8(_op = 'd') as {_IS_DELETED} from {quote_clickhouse(schema.log_name)}"


def _create_feed(schema: TableSchema) -> str:
    feed, state = quote_clickhouse(feed_name(schema)), quote_clickhouse(schema.state_name)
    return f"create materialized view if not exists {feed} to {state} as\n{_feed_query(schema)}"


def create_view(schema: TableSchema) -> str:
    """The statement that makes T, or makes it anew in one step."""
    names = [*(column.name for column in schema.columns), *IN_STATE]
    return (
        f"create or replace view {quote_clickhouse(schema.name)} as\nselect {_listed(names)} "
        f"from {quote_clickhouse(schema.state_name)} final\n"
        f"settings do_not_merge_across_partitions_select_final = 0"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(quote_clickhouse(name) for name in names)


def _alter_actions(old: TableSchema, new: TableSchema) -> list[str]:
    """Added columns stand after the one before them in the declaration; widened ones stay where they are."""
    before = {column.name: column for column in old.columns}
    actions, previous = [], None
    for column in new.columns:
        name, kind = quote_clickhouse(column.name), _column_type(new, column)
        if column.name not in before:
            place = f" after {quote_clickhouse(previous)}" if previous else ""
            actions.append(f"add column if not exists {name} {kind}{place}")
        elif before[column.name].type != column.type:
            actions.append(f"modify column {name} {kind}")
        previous = column.name
    return actions

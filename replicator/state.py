"""Current rows of the declared tables in DuckDB: T_log, T_state and T.

T is the folded base plus the log's unfolded tail, so it is immediate whatever the fold is doing. Guarantees: a fold
moves its position, the base and the view in one transaction. Never in the append's way: it only reads the log.
"""

from __future__ import annotations

from collections.abc import Sequence

from replicator.database import Session, now
from replicator.failpoints import failpoint
from replicator.log_columns import IN_STATE
from replicator.schema import TableSchema, quote
from replicator.typed import log_rows_sql

FOLD_OFFSETS_MAX = 500_000
"""Offsets folded in one transaction: bounds its memory."""


def create_views(session: Session, history: Sequence[TableSchema]) -> None:
    """Make or renew T_log, T_state and T of a table, whose schemas come oldest first."""
    newest = history[-1]
    with session.transaction():
        session.execute(f"create or replace view {quote(newest.log_name)} as {log_rows_sql(history)}")
        _shape_state(session, newest)
        session.execute(_current_view(newest, applied_offset(session, newest.name)))


def applied_offset(session: Session, table: str) -> int:
    """Up to which offset the table's changes are in T_state; 0 when none are."""
    row = session.row("select applied_offset from fold_positions where table_name = ?", [table])
    return row[0] if row else 0


def _shape_state(session: Session, schema: TableSchema) -> None:
    """T_state as the newest schema has it: made, or given its new and widened columns."""
    name = quote(schema.state_name)
    ours = f"select * from {quote(schema.log_name)} limit 0"
    columns = ", ".join(map(quote, _columns(schema)))
    session.execute(f"create table if not exists {name} as select {columns} from ({ours})")
    found = {row[0]: row[1] for row in session.rows("select column_name, column_type from (describe " + name + ")")}
    wanted = {row[0]: row[1] for row in session.rows(f"select column_name, column_type from (describe {ours})")}
    for column in schema.columns:
        kind = wanted[column.name]
        if column.name not in found:
            session.execute(f"alter table {name} add column {quote(column.name)} {kind}")
        elif found[column.name] != kind:
            session.execute(f"alter table {name} alter column {quote(column.name)} set data type {kind}")


def _columns(schema: TableSchema) -> list[str]:
    return [*(column.name for column in schema.columns), *IN_STATE]


def _latest(schema: TableSchema, where: str) -> str:
    key = ", ".join(map(quote, schema.key))
    return (
        f"select * from {quote(schema.log_name)} where {where} "
        f"qualify row_number() over (partition by {key} order by _version desc) = 1"
    )


def _current_view(schema: TableSchema, applied: int) -> str:
    columns = ", ".join(map(quote, _columns(schema)))
    same = " and ".join(f"b.{quote(name)} = l.{quote(name)}" for name in schema.key)
    return (
        f"create or replace view {quote(schema.name)} as "
        f"with latest as ({_latest(schema, f'_offset > {applied:d}')}) "
        f"select {columns} from {quote(schema.state_name)} b where not exists (select 1 from latest l where {same}) "
        f"union all select {columns} from latest where _op <> 'd'"
    )


def fold(session: Session, schema: TableSchema, through: int) -> int:
    """Fold the table's changes up to an offset into T_state, in one transaction. Returns how far it came."""
    applied = applied_offset(session, schema.name)
    end = min(through, applied + FOLD_OFFSETS_MAX)
    if end <= applied:
        return applied
    columns = ", ".join(map(quote, _columns(schema)))
    same = " and ".join(f"b.{quote(name)} = l.{quote(name)}" for name in schema.key)
    state = quote(schema.state_name)
    with session.transaction():
        latest = _latest(schema, f"_offset > {applied:d} and _offset <= {end:d}")
        session.execute(f"create or replace temp table _folding as select {columns} from ({latest})")
        session.execute(f"delete from {state} b using _folding l where {same}")
        failpoint("fold.inside")
        session.execute(f"insert into {state} ({columns}) select {columns} from _folding where _op <> 'd'")
        session.execute("drop table _folding")
        session.execute("delete from fold_positions where table_name = ?", [schema.name])
        session.execute("insert into fold_positions values (?, ?, ?)", [schema.name, end, now()])
        session.execute(_current_view(schema, end))
    return end

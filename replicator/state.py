"""Current rows of the declared tables in DuckDB: T_log, T_state and T, and T as it was: T_as_of and T_as_of_time.

T is the folded base plus the log's unfolded tail, so it is immediate whatever the fold is doing. Guarantees: a fold
moves its position, the base and the view in one transaction. Never in the append's way: it only reads the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import md5

import pyarrow as pa

from replicator.checksum import HashedColumn, row_hash_duckdb
from replicator.database import Session, now, statement
from replicator.failpoints import failpoint
from replicator.log_columns import IN_STATE
from replicator.schema import TableSchema, literal, quote
from replicator.typed import log_rows_sql

FOLD_OFFSETS_MAX = 500_000
"""Offsets folded in one transaction: bounds its memory."""


def create_views(session: Session, history: Sequence[TableSchema]) -> None:
    """Make or renew T_log, T_state and T of a table, whose schemas come oldest first.

    What stands as it would be made is left alone: a tenth of a second per table, at every start.
    """
    newest = history[-1]
    names = [newest.log_name, newest.name, newest.state_name]
    made = session.row(
        statement("state/made"), {"key": _shape_key(newest), "digest": _shape_digest(history), "names": names}
    )
    if made != (len(names),):
        with session.transaction():
            _shape_views(session, history)


def _shape_views(session: Session, history: Sequence[TableSchema]) -> None:
    newest = history[-1]
    session.execute(f"create or replace view {quote(newest.log_name)} as {log_rows_sql(history)}")
    _shape_state(session, newest)
    session.execute(_current_view(newest, applied_offset(session, newest.name)))
    for macro in _as_of_macros(history):
        session.execute(f"create or replace macro {macro}")
    session.execute("delete from meta where key = ?", [_shape_key(newest)])
    session.execute("insert into meta values (?, ?)", [_shape_key(newest), _shape_digest(history)])


def _as_of_macros(history: Sequence[TableSchema]) -> list[str]:
    newest = history[-1]
    offset, time = as_of_sql(history, "as_of_offset"), as_of_sql(history, _offset_at("as_of_time"))
    return [
        f"{quote(newest.as_of_name)}(as_of_offset) as table {offset}",
        f"{quote(newest.as_of_time_name)}(as_of_time) as table {time}",
    ]


def _shape_key(schema: TableSchema) -> str:
    return f"shape/{schema.name}"


def _shape_digest(history: Sequence[TableSchema]) -> str:
    """Of all that a table's views are made of, but for how far it is folded, which each fold puts into T itself."""
    texts = [log_rows_sql(history), _current_view(history[-1], 0), *_as_of_macros(history)]
    return md5("\n".join(texts).encode(), usedforsecurity=False).hexdigest()


def reshape(session: Session, history: Sequence[TableSchema], base: pa.Table | None, applied: int) -> None:
    """Make T_log, T_state and T anew under other schemas. Call inside a transaction.

    ``base``: the rows of T_state, in the types of the newest schema, that follow from changes up to ``applied``, which
    the log no longer holds; the others are folded again from the log.
    """
    newest = history[-1]
    session.execute(f"drop table if exists {quote(newest.state_name)}")
    session.execute("delete from fold_positions where table_name = ?", [newest.name])
    if applied:
        session.execute("insert into fold_positions values (?, ?, ?)", [newest.name, applied, now()])
    _shape_views(session, history)
    if base is not None:
        columns = ", ".join(map(quote, _columns(newest)))
        with session.relation(state_base=base):
            session.execute(f"insert into {quote(newest.state_name)} ({columns}) select {columns} from state_base")


def as_of_sql(history: Sequence[TableSchema], through: str, considered: str = "") -> str:
    """The table's rows as they were when offset ``through`` (an expression) had been logged.

    ``considered``: a condition on log_offset, for a look at some of the changes only. Each key's last change is found
    among the raw ones, so that only those are typed.
    """
    newest = history[-1]
    mine = f"table_name = {literal(newest.name)} and schema_version > 0"
    some = f"{mine} and log_offset <= {through}" + (f" and {considered}" if considered else "")
    last = f"select max(log_offset) from change_log where {some} group by key"
    columns = ", ".join(map(quote, _columns(newest)))
    return (
        f"with latest as materialized (select * from change_log where {mine} and log_offset in ({last})) "
        f"select {columns} from ({log_rows_sql(history, 'latest')}) where _op <> 'd'"
    )


def _offset_at(at: str) -> str:
    """The last offset that was logged at or before an instant."""
    return f"(select coalesce(max(log_offset), 0) from change_log where logged_at <= {at}::timestamp)"


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


def _latest(schema: TableSchema, after: int, through: int | None = None) -> str:
    """Each key's last change of a range, in the types of T_log.

    Not by a window or arg_max, which make -0.0 of a row into 0.0. Source: measured on DuckDB 2.0.0.
    """
    bounds = [f"{{0}} > {after:d}", *([] if through is None else [f"{{0}} <= {through:d}"])]
    logged, typed = (" and ".join(bounds).replace("{0}", name) for name in ("log_offset", "_offset"))
    mine = f"table_name = {literal(schema.name)} and schema_version > 0"
    last = f"select max(log_offset) from change_log where {mine} and {logged} group by key"
    return f"select * from {quote(schema.log_name)} where {typed} and _offset in ({last})"


def _current_view(schema: TableSchema, applied: int) -> str:
    columns = ", ".join(map(quote, _columns(schema)))
    same = " and ".join(f"b.{quote(name)} = l.{quote(name)}" for name in schema.key)
    return (
        f"create or replace view {quote(schema.name)} as "
        f"with latest as ({_latest(schema, applied)}) "
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
        latest = _latest(schema, applied, end)
        session.execute(f"create or replace temp table _folding as select {columns} from ({latest})")
        session.execute(f"delete from {state} b using _folding l where {same}")
        failpoint("fold.inside")
        session.execute(f"insert into {state} ({columns}) select {columns} from _folding where _op <> 'd'")
        session.execute("drop table _folding")
        session.execute("delete from fold_positions where table_name = ?", [schema.name])
        session.execute("insert into fold_positions values (?, ?, ?)", [schema.name, end, now()])
        session.execute(_current_view(schema, end))
    return end


def refresh_keys(session: Session, schema: TableSchema, keys: Sequence[str], key_hashes: Sequence[int]) -> None:
    """Rebuild some keys of T_state from the log, as of where it is folded to. ``keys`` are their canonical texts."""
    columns = ", ".join(map(quote, _columns(schema)))
    state = quote(schema.state_name)
    hashed = _key_hash(schema)
    newest = (
        "select max(log_offset) from change_log where table_name = $table and schema_version > 0 "
        "and key in (select unnest($keys)) and log_offset <= $applied group by key"
    )
    with session.transaction():
        _conflict_with_fold(session, schema)
        where = {"table": schema.name, "keys": list(keys), "applied": applied_offset(session, schema.name)}
        offsets = ", ".join(f"{offset:d}" for (offset,) in session.rows(newest, where))
        session.execute(f"delete from {state} where {hashed} in (select unnest(?::ubigint[]))", [list(key_hashes)])
        if offsets:
            session.execute(
                f"insert into {state} ({columns}) select {columns} from {quote(schema.log_name)} "
                f"where _offset in ({offsets}) and _op <> 'd'"
            )


def single_keys(session: Session, schema: TableSchema, key_hashes: Sequence[int]) -> None:
    """Of each of these keys' rows in T_state keep one, of the highest version."""
    state, hashed = quote(schema.state_name), _key_hash(schema)
    theirs = f"from {state} where {hashed} in (select unnest($hashes::ubigint[]))"
    kept = f"select max_by(rowid, _version) {theirs} group by {hashed}"
    with session.transaction():
        _conflict_with_fold(session, schema)
        session.execute(f"delete {theirs} and rowid not in ({kept})", {"hashes": list(key_hashes)})


def _key_hash(schema: TableSchema) -> str:
    return row_hash_duckdb([HashedColumn(name=c.name, type=c.type) for c in schema.key_columns])


def _conflict_with_fold(session: Session, schema: TableSchema) -> None:
    """A fold at the same time conflicts with this update: one of both is done again."""
    session.execute("update fold_positions set updated_at = ? where table_name = ?", [now(), schema.name])

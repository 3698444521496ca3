"""Changes read back from ClickHouse in the form they were logged in, and put into the log.

Guarantees: what comes back has the offsets, versions and positions it was logged with; nothing of the log is touched
but the offsets named. Never decides whether the sink is to be believed.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from replicator.database import Session
from replicator.log_columns import GENERIC, LEADING, TRAILING
from replicator.model import GENERIC_LANE
from replicator.schema import literal_clickhouse, quote_clickhouse
from replicator.sink import ClickHouseSink

LOG_COLUMNS = tuple(column.name for column in GENERIC)
"""The columns of ``change_log``, in their order."""


def held_changes_sql(table: str, target: str, condition: str) -> str:
    """ClickHouse: the table's changes as ``change_log`` has them, where ``condition`` holds; parameter pipeline."""
    if table == GENERIC_LANE:
        columns = [quote_clickhouse(name) for name in LOG_COLUMNS]
    else:
        named = {column.source: quote_clickhouse(column.name) for column in (*LEADING, *TRAILING)}
        named["table_name"] = literal_clickhouse(table)
        columns = [f"{named[name]} as {quote_clickhouse('o_' + name)}" for name in LOG_COLUMNS]
    return (
        f"select {', '.join(columns)} from {quote_clickhouse(target)} final "
        f"where _pipeline = {{pipeline:String}} and {condition}"
    )


def fetch(
    sink: ClickHouseSink, pipeline: str, table: str, target: str, offset_column: str, offsets: Sequence[int]
) -> pa.Table:
    """The changes that the sink holds at these offsets, as ``change_log`` has them."""
    sql = held_changes_sql(table, target, f"{offset_column} in {{offsets:Array(Int64)}}")
    return as_logged(sink.arrow(sql, {"pipeline": pipeline, "offsets": list(offsets)}))


def as_logged(held: pa.Table) -> pa.Table:
    """The answer to `held_changes_sql` in the names and types of ``change_log``; instants are UTC without a zone."""
    held = held.rename_columns(list(LOG_COLUMNS))
    types = {column.name: column.arrow for column in GENERIC}
    return pa.table({name: _plain(held[name]).cast(types[name]) for name in LOG_COLUMNS})


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_binary(column.type):
        column = column.cast(pa.string())
    return column


def put_back(session: Session, changes: pa.Table) -> None:
    """Log the changes at their own offsets. Call inside a transaction, with nothing logged there."""
    columns = ", ".join(LOG_COLUMNS)
    with session.relation(held_changes=changes):
        session.execute(f"insert into change_log ({columns}) select {columns} from held_changes")

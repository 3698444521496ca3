"""What deliver needs to know of each table: which changes are its own, what it sends where, how it is hashed. Pure.

A lane is a declared table at one schema version, or the generic lane of all changes without a declared table.
"""

from __future__ import annotations

import pyarrow as pa
from attrs import evolve, frozen

from replicator.checksum import GENERIC_HASHED, HashedColumn, hashed_columns, row_hash_clickhouse, row_hash_duckdb
from replicator.log_columns import GENERIC
from replicator.model import GENERIC_LANE
from replicator.schema import TableSchema, literal, quote_clickhouse
from replicator.typed import typed_rows_sql
from replicator.wire import GENERIC_ARROW_SCHEMA, ROW_HASH, arrow_schema, wire_sql

STAND_IN = "__rebuild"
"""What a rebuild's new tables have behind the table's name, before _log and _state."""


@frozen(kw_only=True)
class Lane:
    """``batch_sql`` is the DuckDB query for one batch, with parameters ``first`` and ``last``: the target's columns
    but ``_pipeline`` and ``_send``, then ``_row_hash`` (uint64).

    ``where`` picks the lane's changes from ``change_log``. ``hash_clickhouse`` is the same hash over the target's
    columns; ``offset_column`` names the offset there. ``state_check`` asks ClickHouse how many keys of a range
    have not reached their last version in the state table; empty where there is none.
    """

    name: str
    target: str
    batch_sql: str
    typed_sql: str
    """The same rows in the types of the log rather than of the wire, without the hash."""
    arrow: pa.Schema
    """What every batch must be, ``_pipeline`` and ``_send`` included."""
    where: str
    hash_clickhouse: str
    offset_column: str
    hashed: tuple[HashedColumn, ...]
    schema_version: int = 0
    state_check: str = ""

    def batch_sql_with_copies(self) -> str:
        """``batch_sql`` for a range of which retention has left only the copies of parked changes."""
        return self.batch_sql.replace("from change_log where", f"from {_LOGGED_OR_PARKED} where")

    def held_sql(self) -> str:
        """The ClickHouse query for what a range holds: count, sum and xor of row hashes."""
        return (
            f"select count(), sumWithOverflow(h), groupBitXor(h) from (select {self.hash_clickhouse} as h "
            f"from {quote_clickhouse(self.target)} final where {self._in_range()})"
        )

    def sent_rows_sql(self) -> str:
        """The ClickHouse query for how many rows of a range one send has left there."""
        return (
            f"select count() from {quote_clickhouse(self.target)} where {self._in_range()} and _send = {{send:UInt64}}"
        )

    def _in_range(self) -> str:
        return _range_clickhouse(self.offset_column)


def _range_clickhouse(offset_column: str) -> str:
    return f"_pipeline = {{pipeline:String}} and {offset_column} between {{first:Int64}} and {{last:Int64}}"


def generic_lane() -> Lane:
    """The lane of changes whose table is not declared, as they are in the log."""
    columns = ", ".join(column.source for column in GENERIC)
    hashed = row_hash_duckdb(GENERIC_HASHED)
    where = "schema_version = 0"
    return Lane(
        name=GENERIC_LANE,
        target=GENERIC_LANE,
        batch_sql=f"select {columns}, {hashed} as {ROW_HASH} from change_log where {_RANGE} and {where}",
        typed_sql=f"select {columns} from change_log where {_RANGE} and {where}",
        arrow=GENERIC_ARROW_SCHEMA,
        where=where,
        hash_clickhouse=row_hash_clickhouse(GENERIC_HASHED),
        offset_column="log_offset",
        hashed=GENERIC_HASHED,
    )


_LOGGED_OR_PARKED = (
    "(from change_log union all by name select * exclude (failed_sync_id) from parked_changes "
    "where log_offset < (select min(log_offset) from change_log) qualify row_number() over (partition by log_offset) = 1)"
)
_RANGE = "log_offset between $first and $last"


def typed_lane(schema: TableSchema, newest: TableSchema, *, source: str = "change_log", place: str = "") -> Lane:
    """The lane of a declared table at one version, into the table as its newest version has it.

    ``source`` is what holds the changes, in the columns of the log; ``place`` a name that its tables in ClickHouse have
    in the place of the table's own.
    """
    where = f"table_name = {literal(schema.name)} and schema_version = {schema.schema_version}"
    source = f"(select * from {source} where {_RANGE} and {where})"
    there = evolve(schema, name=place or schema.name)
    return Lane(
        name=schema.name,
        target=there.log_name,
        batch_sql=wire_sql(schema, source, newest),
        typed_sql=typed_rows_sql(schema, source),
        arrow=arrow_schema(newest),
        where=where,
        hash_clickhouse=row_hash_clickhouse(hashed_columns(schema)),
        offset_column="_offset",
        hashed=hashed_columns(schema),
        schema_version=schema.schema_version,
        state_check=_state_check(there),
    )


def _state_check(schema: TableSchema) -> str:
    """Without FINAL, under which a tombstone shows no row."""
    key = ", ".join(quote_clickhouse(name) for name in schema.key)
    log, state = quote_clickhouse(schema.log_name), quote_clickhouse(schema.state_name)
    sent = f"select {key}, max(_version) as wanted from {log} where {_range_clickhouse('_offset')} group by {key}"
    kept = (
        f"select {key}, max(_version) as reached from {state} where ({key}) in (select {key} from sent) group by {key}"
    )
    return (
        f"with sent as ({sent}), kept as ({kept}) "
        f"select count() from sent left join kept using ({key}) where wanted > reached"
    )

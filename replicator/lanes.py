"""What deliver needs to know of each table: which changes are its own, what it sends where, how it is hashed. Pure.

A lane is a declared table at one schema version, or the generic lane of all changes without a declared table.
"""

from __future__ import annotations

from attrs import frozen

from replicator.model import GENERIC_LANE

GENERIC_COLUMNS = (
    "log_offset",
    "version",
    "table_name",
    "op",
    "key",
    "payload",
    "schema_version",
    "producer_schema",
    "event_id",
    "event_at",
    "logged_at",
    "stream",
    "stream_epoch",
    "entry_id",
    "entry_row",
)
_GENERIC_HASHED = ("version", "table_name", "op", "key", "payload", "event_id", "entry_id")
ROW_HASH = "_row_hash"


@frozen(kw_only=True)
class Lane:
    """``select`` yields the target's columns but ``_pipeline`` and ``_send``, then ``_row_hash`` (uint64).

    ``where`` picks the lane's changes from ``change_log``. ``hash_clickhouse`` is the same hash over the target's
    columns; ``offset_column`` names the offset there. ``state_check`` asks ClickHouse how many keys of a range
    have not reached their last version in the state table; empty where there is none.
    """

    name: str
    target: str
    select: str
    where: str
    hash_clickhouse: str
    offset_column: str
    schema_version: int = 0
    state_check: str = ""

    def batch_sql(self) -> str:
        """The DuckDB query for one batch; parameters ``first`` and ``last``."""
        return f"select {self.select} from change_log where log_offset between $first and $last and {self.where}"

    def held_sql(self) -> str:
        """The ClickHouse query for what a range holds: count, sum and xor of row hashes."""
        return (
            f"select count(), sumWithOverflow(h), groupBitXor(h) from (select {self.hash_clickhouse} as h "
            f"from `{self.target}` final where _pipeline = {{pipeline:String}} "
            f"and {self.offset_column} between {{first:Int64}} and {{last:Int64}})"
        )

    def sent_rows_sql(self) -> str:
        """The ClickHouse query for how many rows of a range one send has left there."""
        return (
            f"select count() from `{self.target}` where _pipeline = {{pipeline:String}} and _send = {{send:UInt64}} "
            f"and {self.offset_column} between {{first:Int64}} and {{last:Int64}}"
        )


def generic_lane() -> Lane:
    """The lane of changes whose table is not declared, as they are in the log."""
    hashed = " || ".join(_piece_duckdb(column) for column in _GENERIC_HASHED)
    columns = ", ".join(GENERIC_COLUMNS)
    return Lane(
        name=GENERIC_LANE,
        target=GENERIC_LANE,
        select=f"{columns}, md5_number_upper({hashed}) as {ROW_HASH}",
        where="schema_version = 0",
        hash_clickhouse=f"reinterpretAsUInt64(substring(MD5(concat({', '.join(map(_piece_clickhouse, _GENERIC_HASHED))})), 1, 8))",
        offset_column="log_offset",
    )


def _piece_duckdb(column: str) -> str:
    return f"coalesce(strlen({column}::varchar) || ':' || {column}::varchar, 'N;')"


def _piece_clickhouse(column: str) -> str:
    return f"ifNull(concat(toString(length(toString({column}))), ':', toString({column})), 'N;')"

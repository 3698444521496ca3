"""The columns of ours that stand beside a table's own, under their names in T_log on both sides.

One list, from which the DuckDB views, the delivered batches and ClickHouse's tables are all written.
"""

from __future__ import annotations

import pyarrow as pa
from attrs import frozen


@frozen(kw_only=True)
class LogColumn:
    """A column of T_log: its SQL over ``change_log``, how it travels, and its type in ClickHouse."""

    name: str
    source: str
    arrow: pa.DataType
    clickhouse: str


def _column(name: str, source: str, arrow: pa.DataType, clickhouse: str) -> LogColumn:
    return LogColumn(name=name, source=source, arrow=arrow, clickhouse=clickhouse)


_TEXT, _INSTANT = pa.string(), pa.timestamp("us")

PIPELINE = _column("_pipeline", "", _TEXT, "LowCardinality(String)")
SEND = _column("_send", "", pa.uint64(), "UInt64")
"""Only a sent row has these two: the sender adds them."""

LEADING = (
    _column("_offset", "log_offset", pa.int64(), "Int64"),
    _column("_version", "version", pa.uint64(), "UInt64"),
    _column("_op", "op", _TEXT, "LowCardinality(String)"),
    _column("_key", "key", _TEXT, "String"),
)
TRAILING = (
    _column("_payload", "payload", _TEXT, "Nullable(String)"),
    _column("_schema_version", "schema_version", pa.int32(), "Int32"),
    _column("_producer_schema", "producer_schema", _TEXT, "Nullable(String)"),
    _column("_event_id", "event_id", _TEXT, "Nullable(String)"),
    _column("_event_at", "event_at", _INSTANT, "Nullable(DateTime64(6, 'UTC'))"),
    _column("_logged_at", "logged_at", _INSTANT, "DateTime64(6, 'UTC')"),
    _column("_stream", "stream", _TEXT, "LowCardinality(String)"),
    _column("_stream_epoch", "stream_epoch", pa.int32(), "Int32"),
    _column("_entry_id", "entry_id", _TEXT, "String"),
    _column("_entry_row", "entry_row", pa.int32(), "Int32"),
)
IN_STATE = ("_offset", "_version", "_op", "_event_id", "_event_at", "_logged_at", "_schema_version")
"""Those that T_state keeps of the latest change of each key, and that T shows after the table's own columns."""

GENERIC = (
    _column("log_offset", "log_offset", pa.int64(), "Int64"),
    _column("version", "version", pa.uint64(), "UInt64"),
    _column("table_name", "table_name", _TEXT, "LowCardinality(String)"),
    _column("op", "op", _TEXT, "LowCardinality(String)"),
    _column("key", "key", _TEXT, "Nullable(String)"),
    _column("payload", "payload", _TEXT, "Nullable(String)"),
    _column("schema_version", "schema_version", pa.int32(), "Int32"),
    _column("producer_schema", "producer_schema", _TEXT, "Nullable(String)"),
    _column("event_id", "event_id", _TEXT, "Nullable(String)"),
    _column("event_at", "event_at", _INSTANT, "Nullable(DateTime64(6, 'UTC'))"),
    _column("logged_at", "logged_at", _INSTANT, "DateTime64(6, 'UTC')"),
    _column("stream", "stream", _TEXT, "LowCardinality(String)"),
    _column("stream_epoch", "stream_epoch", pa.int32(), "Int32"),
    _column("entry_id", "entry_id", _TEXT, "String"),
    _column("entry_row", "entry_row", pa.int32(), "Int32"),
)
"""The columns of ClickHouse's ``change_log``: those of DuckDB's, under the same names."""

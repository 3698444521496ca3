-- Changes of streams without a declared table, as they stand in the DuckDB log.
create table if not exists change_log
(
    _pipeline LowCardinality(String),
    log_offset Int64,
    version UInt64,
    table_name LowCardinality(String),
    op LowCardinality(String),
    key Nullable(String),
    payload Nullable(String),
    schema_version Int32,
    producer_schema Nullable(String),
    event_id Nullable(String),
    event_at Nullable(DateTime64(6, 'UTC')),
    logged_at DateTime64(6, 'UTC'),
    stream LowCardinality(String),
    stream_epoch Int32,
    entry_id String,
    entry_row Int32,
    _send UInt64
)
engine = ReplacingMergeTree(_send)
order by (_pipeline, log_offset)
settings non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1

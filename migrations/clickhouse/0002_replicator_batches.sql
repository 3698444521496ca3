-- The ledger: which ranges stand in this database, written after the data and before the checkpoint.
create table if not exists replicator_batches
(
    pipeline LowCardinality(String),
    table_name LowCardinality(String),
    first_offset Int64,
    last_offset Int64,
    row_count UInt64,
    checksum String,
    status LowCardinality(String),
    send_seq UInt64,
    timeline UInt16,
    instance_id String,
    query_id String,
    delivered_at DateTime64(6, 'UTC')
)
engine = ReplacingMergeTree(delivered_at)
order by (pipeline, table_name, first_offset, last_offset)
settings fsync_after_insert = 1, fsync_part_directory = 1

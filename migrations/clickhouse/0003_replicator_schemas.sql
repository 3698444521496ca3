-- How each declared table was declared, version by version: what a restore needs to type and hash its changes again.
create table if not exists replicator_schemas
(
    pipeline LowCardinality(String),
    table_name LowCardinality(String),
    schema_version Int32,
    definition String,
    rebuilt UInt8,
    recorded_at DateTime64(6, 'UTC') default now64(6)
)
engine = ReplacingMergeTree(recorded_at)
order by (pipeline, table_name, schema_version)
settings fsync_after_insert = 1, fsync_part_directory = 1

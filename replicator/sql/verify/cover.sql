-- Record a range that was sent though no batch covered it.
insert into sync_batches (
    batch_id, table_name, first_offset, last_offset, row_count, checksum, schema_version, send_seq, attempt,
    frozen_at, delivered_at
)
values (
    replace(uuid()::varchar, '-', ''), $table, $first, $last, $rows, $checksum, $schema_version, $send_seq, 1, $at, $at
)

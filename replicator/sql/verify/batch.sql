-- One delivered batch of ours.
select row_count, checksum, send_seq, delivered_at, schema_version from sync_batches
where table_name = $table and first_offset = $first and last_offset = $last and delivered_at is not null

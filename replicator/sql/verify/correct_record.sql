-- Give a batch's record the checksum that log, sink and the sink's ledger agree on.
update sync_batches set checksum = $checksum, row_count = $rows
where table_name = $table and first_offset = $first and last_offset = $last

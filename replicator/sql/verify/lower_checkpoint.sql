-- Let a table's checkpoint end where its batches do.
update checkpoints set log_offset = (
    select coalesce(max(last_offset), 0) from sync_batches where table_name = $table
)
where table_name = $table

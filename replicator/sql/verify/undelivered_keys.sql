-- Keys with changes that are logged but not yet delivered, or parked.
select distinct key from change_log
where table_name = $table and key is not null and log_offset > (
    select coalesce(max(last_offset), 0) from sync_batches where table_name = $table and delivered_at is not null
)
union
select key from parked_changes where table_name = $table

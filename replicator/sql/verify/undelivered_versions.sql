-- Versions of a table's changes that are logged but not yet delivered, or parked.
select version from change_log
where table_name = $table and log_offset > (
    select coalesce(max(last_offset), 0) from sync_batches where table_name = $table and delivered_at is not null
)
union all
select version from parked_changes where table_name = $table

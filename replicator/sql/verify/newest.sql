-- The newest delivered change of some keys of a table.
select max(log_offset) from change_log
where table_name = $table and schema_version > 0 and key in (select unnest($keys))
    and log_offset <= (select coalesce(max(last_offset), 0) from sync_batches where table_name = $table and delivered_at is not null)
group by key

-- By key: the offset, version and schema version of its newest change that was delivered; of parked keys nothing.
with batched as (
    select coalesce(max(last_offset), 0) as reached from sync_batches where table_name = $table and delivered_at is not null
)
select key, max(log_offset), arg_max(version, log_offset), arg_max(schema_version, log_offset)
from change_log
where table_name = $table and schema_version > 0 and key in (select unnest($keys))
    and log_offset <= (select reached from batched)
group by key

-- Open rows of failed_syncs, of one lane or of all, with the schema version of the batch that failed.
select
    id, table_name, first_offset, last_offset, f.row_count, reason, attempts,
    coalesce((
        select max(schema_version) from sync_batches b
        where b.table_name = f.table_name and b.first_offset <= f.last_offset and b.last_offset >= f.first_offset
    ), 0)
from failed_syncs f
where status = 'open' and ($lane is null or table_name = $lane)
order by first_offset

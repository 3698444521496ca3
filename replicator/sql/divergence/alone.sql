-- Changes behind $head that no delivery of this file's covers, or that are parked: how many, and the first.
select count(*), min(c.log_offset)
from (
    select log_offset, case when schema_version = 0 then 'change_log' else table_name end as lane
    from change_log where log_offset > $head and schema_version >= 0
) c
where not exists (
        select 1 from sync_batches b
        where b.table_name = c.lane and b.delivered_at is not null
            and c.log_offset between b.first_offset and b.last_offset
    )
    or exists (
        select 1 from failed_syncs f
        where f.table_name = c.lane and f.status = 'open' and c.log_offset between f.first_offset and f.last_offset
    )

-- The first offset that somebody still needs, and why: what the sink does not have, what was delivered in the hour
-- ($settled_seconds) before the last delivery, what failed and has no copy, what no comparison has seen, where $verify
-- says that some are scheduled.
with batched as (
    select table_name as lane, max(last_offset) as ended, min(first_offset) filter (delivered_at is null) as undelivered
    from sync_batches group by table_name
),
stands as (
    select
        coalesce(b.lane, c.table_name) as lane,
        coalesce(b.undelivered - 1, greatest(b.ended, c.log_offset), 0) as checkpoint
    from batched b full join checkpoints c on c.table_name = b.lane
),
changes as (
    select case when schema_version = 0 then 'change_log' else table_name end as lane, log_offset
    from change_log
    where log_offset > coalesce((select min(checkpoint) from stands), 0) and schema_version >= 0
),
verified as (
    select unnest($lanes::varchar[]) as lane, unnest($offsets::bigint[]) as through
)
select 'it is not delivered', min(c.log_offset)
from changes c left join stands s using (lane) where c.log_offset > coalesce(s.checkpoint, 0)
union all
select 'it was delivered within the hour before the last delivery', min(first_offset)
from sync_batches where delivered_at >= (select max(delivered_at) from sync_batches) - to_seconds($settled_seconds::double)
union all
select 'it is in an open failed sync', min(f.first_offset)
from failed_syncs f
where f.status = 'open' and f.last_offset >= $oldest and not (
    f.reason = 'rejected'
    and f.row_count = (select count(distinct p.log_offset) from parked_changes p where p.failed_sync_id = f.id)
)
union all
select 'no comparison has verified it', min(b.first_offset)
from sync_batches b left join verified v on v.lane = b.table_name
where $verify and b.delivered_at is not null and b.last_offset > coalesce(v.through, 0)

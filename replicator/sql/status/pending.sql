-- What each lane has still to deliver, from the file alone: rows, the oldest one's time, where the lane stands.
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
    select case when schema_version = 0 then 'change_log' else table_name end as lane, log_offset, logged_at
    from change_log
    where log_offset > coalesce((select min(checkpoint) from stands), 0) and schema_version >= 0
),
pending as (
    select c.lane, count(*) as pending, epoch(min(c.logged_at)) as oldest_at
    from changes c left join stands s using (lane)
    where c.log_offset > coalesce(s.checkpoint, 0)
    group by c.lane
)
select coalesce(s.lane, p.lane), coalesce(s.checkpoint, 0), coalesce(p.pending, 0), p.oldest_at
from stands s full join pending p on p.lane = s.lane

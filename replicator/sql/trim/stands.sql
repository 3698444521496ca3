-- How far each lane is delivered without a hole: up to its first batch in flight, else up to its last one.
with batched as (
    select table_name as lane, max(last_offset) as ended, min(first_offset) filter (delivered_at is null) as undelivered
    from sync_batches group by table_name
)
select
    coalesce(b.lane, c.table_name) as lane,
    coalesce(b.undelivered - 1, greatest(b.ended, c.log_offset), 0) as checkpoint
from batched b full join checkpoints c on c.table_name = b.lane

-- Up to where each lane is delivered without a break.
select
    table_name,
    least(
        max(last_offset) filter (delivered_at is not null),
        coalesce(min(first_offset) filter (delivered_at is null) - 1, 9223372036854775807)
    )
from sync_batches
group by table_name
having count(delivered_at) > 0

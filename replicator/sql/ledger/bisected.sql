-- The batch of each lane that was cut last, and how many of its rows are parked.
with bisected as (
    select
        key[10:] as lane, split_part(value, '-', 1)::bigint as first_offset, split_part(value, '-', 2)::bigint as last_offset
    from meta
    where starts_with(key, 'bisected/')
)
select
    lane, first_offset, last_offset,
    (
        select count(*) from failed_syncs f
        where f.table_name = b.lane and f.status = 'open' and f.reason = 'rejected'
            and f.first_offset between b.first_offset and b.last_offset
    )
from bisected b

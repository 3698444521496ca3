-- Up to where each lane was delivered or parked: its last batch with nothing undelivered before it.
select table_name, max(last_offset)
from sync_batches b
where delivered_at is not null
    and not exists (
        select 1 from sync_batches u
        where u.table_name = b.table_name and u.delivered_at is null and u.first_offset <= b.last_offset
    )
group by table_name

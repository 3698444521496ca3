-- Up to where each lane was delivered or parked by $before: its last batch with none before it that was not.
with late as (
    select table_name, min(first_offset) as first_late
    from sync_batches where delivered_at is null or delivered_at > $before
    group by table_name
)
select b.table_name, max(b.last_offset)
from sync_batches b left join late l on l.table_name = b.table_name
where b.delivered_at <= $before and (l.first_late is null or b.last_offset < l.first_late)
group by b.table_name

-- Offsets at or below a lane's checkpoint that no delivered batch and no open, discarded or resolved failure covers.
with batched as (
    select table_name, first_offset, last_offset from sync_batches where delivered_at is not null
),
chained as (
    select
        table_name, first_offset, last_offset,
        coalesce(max(last_offset) over (
            partition by table_name order by first_offset, last_offset
            rows between unbounded preceding and 1 preceding
        ), (select coalesce(min(first_offset), 1) - 1 from batched b where b.table_name = batched.table_name)) as reached
    from batched
)
select table_name, reached + 1 as gap_first, first_offset - 1 as gap_last
from chained
where first_offset > reached + 1

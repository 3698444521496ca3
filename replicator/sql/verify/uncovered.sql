-- Ranges between a lane's delivered batches that no batch covers, though its changes stand there.
with chained as (
    select
        table_name, last_offset + 1 as gap_first,
        lead(first_offset) over (partition by table_name order by first_offset, last_offset) - 1 as gap_last
    from sync_batches where delivered_at is not null
)
select c.table_name, c.gap_first, c.gap_last
from chained c
where c.gap_last >= c.gap_first
    and exists (
        select 1 from change_log l
        where l.log_offset between c.gap_first and c.gap_last
            and case when c.table_name = 'change_log' then l.schema_version = 0 else l.table_name = c.table_name and l.schema_version > 0 end
    )
    and not exists (
        select 1 from sync_batches u
        where u.table_name = c.table_name and u.delivered_at is null
            and u.first_offset <= c.gap_last and u.last_offset >= c.gap_first
    )

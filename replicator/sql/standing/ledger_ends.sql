-- ClickHouse: for each lane the end of its ledger's contiguous union, the ledger's last offset, and the rows recorded up to the former.
with recorded as (
    select table_name, first_offset, last_offset, row_count, timeline
    from replicator_batches final where pipeline = {pipeline:String}
), placed as (
    select *, max(last_offset) over (
        partition by table_name order by first_offset, last_offset rows between unbounded preceding and 1 preceding
    ) as before
    from recorded
), ends as (
    select
        table_name, max(last_offset) as top, max(timeline) as newest,
        if(countIf(first_offset > before + 1) > 0, minIf(before, first_offset > before + 1), max(last_offset)) as agreed
    from placed group by table_name
)
select table_name, any(agreed), any(top), any(newest), sumIf(recorded.row_count, recorded.last_offset <= agreed)
from ends join recorded using (table_name)
group by table_name

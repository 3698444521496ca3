-- ClickHouse: where each table's contiguous union of ledger ranges ends, from the offset each is known to reach.
with mapFromArrays({tables:Array(String)}, {offsets:Array(Int64)}) as known
select
    table_name,
    if(countIf(first_offset > reached + 1) = 0, max(last_offset), minIf(reached, first_offset > reached + 1)) as confirmed,
    countIf(first_offset <= known[table_name] + 1 and last_offset >= known[table_name]) as anchors
from (
    select
        table_name, first_offset, last_offset,
        greatest(known[table_name], max(last_offset) over (
            partition by table_name order by first_offset, last_offset rows between unbounded preceding and 1 preceding
        )) as reached
    from replicator_batches final
    where pipeline = {pipeline:String} and last_offset >= known[table_name]
)
group by table_name

-- ClickHouse: how many rows of each of these ranges the lane's table holds, by the range's first offset.
with ranges as (
    select 1 as one, r.1 as first_offset, r.2 as last_offset
    from (select arrayJoin(arrayZip({firsts:Array(Int64)}, {lasts:Array(Int64)})) as r)
)
select r.first_offset, count()
from (
    select 1 as one, $offset as place from $target
    where _pipeline = {pipeline:String} and place between {low:Int64} and {high:Int64}
) as t
asof join ranges as r on t.one = r.one and t.place >= r.first_offset
where t.place <= r.last_offset
group by r.first_offset

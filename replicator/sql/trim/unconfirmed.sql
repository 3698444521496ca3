-- By lane and stream the first change behind where the lane stands. $behind: the least of where they stand, as a
-- constant, so that what is before it is not even looked at.
with stands as (
    select unnest($lanes) as lane, unnest($starts) as start
),
changes as (
    select
        case when schema_version = 0 then 'change_log' else table_name end as lane,
        log_offset, stream, stream_epoch, entry_id
    from change_log
    where log_offset > $behind and schema_version >= 0
)
select
    c.lane, c.stream, min(c.log_offset), arg_min(c.stream_epoch, c.log_offset), arg_min(c.entry_id, c.log_offset)
from changes c left join stands s using (lane)
where c.log_offset > coalesce(s.start, 0)
group by c.lane, c.stream

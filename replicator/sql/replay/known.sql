-- How many of a lane's changes between two offsets stand in ranges that are parked or discarded.
select count(*) from change_log
where log_offset between $first and $last
    and (case when schema_version = 0 then 'change_log' else table_name end) = $lane and schema_version >= 0
    and exists (
        select 1 from (select unnest($firsts::bigint[]) as a, unnest($lasts::bigint[]) as b)
        where log_offset between a and b
    )

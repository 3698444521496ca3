-- How many of a table's logged changes up to an offset are not in ranges that were parked or discarded.
select count(*) from change_log
where table_name = $table and schema_version > 0 and log_offset <= $last
    and not exists (
        select 1 from (select unnest($firsts::bigint[]) as a, unnest($lasts::bigint[]) as b)
        where log_offset between a and b
    )

-- A lane's changes between two offsets by schema version and window of offsets: how many, how many bytes.
select
    schema_version,
    max(log_offset) as last_offset,
    count(*) as changes,
    sum(coalesce(strlen(payload), 0) + coalesce(strlen(key), 0))::bigint as bytes
from change_log
where log_offset between $first and $last and schema_version >= 0
    and (case when schema_version = 0 then 'change_log' else table_name end) = $lane
group by schema_version, log_offset // $window
order by last_offset

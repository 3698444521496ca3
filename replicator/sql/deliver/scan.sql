-- Pending changes by lane, schema version and window of offsets, in the order of their offsets.
select
    case when schema_version = 0 then 'change_log' else table_name end as lane,
    schema_version,
    max(log_offset) as last_offset,
    count(*) as changes,
    epoch(min(logged_at)) as oldest_at
from change_log
where log_offset > $after and log_offset <= $through and schema_version >= 0
group by lane, schema_version, log_offset // $window
order by last_offset

-- When the oldest change of one lane in a range was logged.
select epoch(min(logged_at))
from change_log
where log_offset between $first and $last
    and case when $lane = 'change_log' then schema_version = 0 else table_name = $lane and schema_version > 0 end

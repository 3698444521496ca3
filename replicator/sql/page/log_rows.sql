-- How many changes of each table the log holds.
select case when schema_version = 0 then 'change_log' else table_name end, count(*)
from change_log where schema_version >= 0 group by 1

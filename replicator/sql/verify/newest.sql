-- By key: the offset of its newest change at or below $checkpoint, and that of its newest of all.
select key, max(log_offset) filter (log_offset <= $checkpoint), max(log_offset)
from change_log
where table_name = $table and schema_version > 0 and key in (select unnest($keys))
group by key

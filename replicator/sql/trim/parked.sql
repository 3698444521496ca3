-- By stream the first change in an open failed range, between the first and the last offset of them all.
select c.stream, min(c.log_offset), arg_min(c.stream_epoch, c.log_offset), arg_min(c.entry_id, c.log_offset)
from change_log c join failed_syncs f
    on f.table_name = case when c.schema_version = 0 then 'change_log' else c.table_name end
    and c.log_offset between f.first_offset and f.last_offset
where c.log_offset between $first and $last and c.schema_version >= 0 and f.status = 'open'
group by c.stream

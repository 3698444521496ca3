-- Claim the ids of what the log holds of the window.
insert into claimed_ids
select hash(stream, table_name, event_id), hash(op, key, payload, producer_schema, event_at), logged_at
from change_log
where event_id is not null and logged_at >= $oldest
order by log_offset

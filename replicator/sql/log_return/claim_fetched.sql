-- Claim the ids of the changes that were fetched, behind all claims of before: what was sent again is not logged twice.
insert into claimed_ids
select hash(stream, table_name, event_id), hash(op, key, payload, producer_schema, event_at), logged_at
from change_log
where log_offset > $head and event_id is not null
order by log_offset

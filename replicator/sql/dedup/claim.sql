-- Claim the ids of the changes that are being logged.
insert into claimed_ids
select hash(stream, table_name, event_id), hash(op, key, payload, producer_schema, event_at), $logged_at
from new_changes
where event_id is not null

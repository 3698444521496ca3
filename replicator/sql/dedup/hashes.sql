-- The ids of decoded changes, within stream and table, and their contents, hashed, in the changes' order.
select
    hash(stream, table_name, event_id) as id_hash,
    hash(op, key, payload, producer_schema, event_at) as content_hash
from new_changes

-- The copies of changes that were refused, of one failed sync.
select log_offset, version::varchar as version, table_name, op, key, payload, event_id, stream, entry_id, entry_row
from parked_changes where failed_sync_id = $id order by log_offset limit $limit

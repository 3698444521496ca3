-- Log decoded changes at the offsets they were given.
insert into change_log
select
    log_offset, $base::ubigint + log_offset::ubigint,
    table_name, op, key, payload, schema_version, producer_schema, event_id, event_at,
    $logged_at, stream, stream_epoch, entry_id, entry_row
from new_changes

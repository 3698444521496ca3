-- Changes that an offset, an event id, an entry id or a key names, newest first.
select
    log_offset, version::varchar as version, table_name, op, key, schema_version, event_id, event_at, logged_at,
    stream, stream_epoch, entry_id, entry_row
from change_log
where schema_version >= 0
    and (log_offset = $offset or event_id = $text or entry_id = $text or key = $text)
    and ($table is null or table_name = $table)
order by log_offset desc
limit $limit

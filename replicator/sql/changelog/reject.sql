-- Keep entries that cannot be logged, with their raw bytes and the reason.
insert into rejected_entries (stream, stream_epoch, entry_id, entry_row, raw, reason, rejected_at, status)
select stream, stream_epoch, entry_id, entry_row, raw, reason, $rejected_at, 'open' from new_rejections

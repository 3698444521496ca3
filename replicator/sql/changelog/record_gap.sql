-- Record entries that left Redis before they were read.
insert into stream_gaps (stream, after_entry_id, before_entry_id, entries_lost, cause, found_at, status)
values (?, ?, ?, ?, ?, ?, 'open')

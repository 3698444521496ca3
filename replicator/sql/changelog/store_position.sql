-- Where a stream stands now.
insert into stream_positions (
    stream, stream_epoch, last_entry_id, last_entry_row, entries_read, updated_at,
    entries_unread, published_entry_id, known_through
)
values (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- Where every stream stands.
select stream, stream_epoch, last_entry_id, last_entry_row, entries_read from stream_positions

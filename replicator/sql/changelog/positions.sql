-- Where every stream stands.
select
    stream, stream_epoch, last_entry_id, last_entry_row, entries_read,
    entries_unread, published_entry_id, known_through
from stream_positions

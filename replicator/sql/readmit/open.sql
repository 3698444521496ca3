-- Rejected entries that are still open.
select id, stream, stream_epoch, entry_id, entry_row, raw, rejected_at
from rejected_entries
where list_contains($ids, id) and status = 'open'

-- Rejected entries of an entry id.
select id, stream, entry_id, entry_row, reason, rejected_at, status
from rejected_entries where entry_id = $text order by id limit $limit

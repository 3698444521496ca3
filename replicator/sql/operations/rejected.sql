-- Rejected entries that match a selection, oldest first.
select id, stream, stream_epoch, entry_id, entry_row, raw, reason, rejected_at, status
from rejected_entries
where ($id is null or id = $id)
    and ($status is null or status = $status)
    and ($stream is null or stream = $stream)
    and ($older_than is null or rejected_at <= $older_than)
order by id
limit $limit

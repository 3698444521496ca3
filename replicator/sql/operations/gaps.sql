-- Gaps that match a selection, oldest first.
select id, stream, after_entry_id, before_entry_id, entries_lost, cause, found_at, status
from stream_gaps
where ($id is null or id = $id) and ($status is null or status = $status) and ($stream is null or stream = $stream)
order by id
limit $limit

-- Ranges of a lane in failed_syncs that cover an offset.
select
    id, first_offset, last_offset, reason, error_code, error_column, error_message, attempts, first_failed_at,
    last_failed_at, status, note
from failed_syncs
where table_name = $lane and first_offset <= $offset and last_offset >= $offset
order by id

-- Rows of failed_syncs that match a selection, oldest offsets first.
select
    id, table_name, first_offset, last_offset, row_count, reason, error_code, error_column, error_message,
    attempts, first_failed_at, last_failed_at, status, note
from failed_syncs
where ($id is null or id = $id)
    and ($status is null or status = $status)
    and ($table is null or table_name = $table)
    and ($older_than is null or first_failed_at <= $older_than)
order by first_offset, id
limit $limit

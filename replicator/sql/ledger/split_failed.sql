-- A part of a parked range as a row of its own, with the history of the whole.
insert into failed_syncs (
    id, table_name, first_offset, last_offset, row_count, reason, error_code,
    error_column, error_message, attempts, first_failed_at, last_failed_at, status, note
)
select
    nextval('failed_syncs_id'), table_name, $1, $2, $3, reason, error_code,
    error_column, error_message, attempts, first_failed_at, last_failed_at, status, note
from failed_syncs
where id = $4
returning id

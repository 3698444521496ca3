-- Record a range whose attempts are exhausted.
insert into failed_syncs (
    id, table_name, first_offset, last_offset, row_count, reason, error_code,
    error_column, error_message, attempts, first_failed_at, last_failed_at, status
)
values (nextval('failed_syncs_id'), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open')
returning id

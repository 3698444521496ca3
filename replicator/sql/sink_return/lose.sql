-- Offsets that neither the sink nor the log holds any more.
insert into failed_syncs (
    id, table_name, first_offset, last_offset, row_count, reason, error_message, attempts,
    first_failed_at, last_failed_at, status
)
values (
    nextval('failed_syncs_id'), $lane, $first, $last, $rows, 'lost',
    'the sink went back, and retention has removed these changes from the log', 0, $at, $at, 'open'
)

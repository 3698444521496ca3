-- Offsets that the sink does not hold any more: to be sent again, or, where the log has pruned them, lost.
insert into failed_syncs (
    id, table_name, first_offset, last_offset, row_count, reason, error_message, attempts,
    first_failed_at, last_failed_at, status
)
values (nextval('failed_syncs_id'), $lane, $first, $last, $rows, $reason, $message, 0, $at, $at, 'open')

-- A range that was parked while this file did not exist: open, where the log still holds its changes.
insert into failed_syncs (
    id, table_name, first_offset, last_offset, row_count, reason, error_message, attempts,
    first_failed_at, last_failed_at, status, note
)
select
    nextval('failed_syncs_id'), $lane, $first, $last, count(*), 'outage', 'parked before the log went back', 1,
    $at, $at, 'open', 'from the ledger'
from change_log
where log_offset between $first and $last
    and case when $lane = 'change_log' then schema_version = 0 else table_name = $lane and schema_version > 0 end
having count(*) > 0
returning id

-- A batch that the ledger knows and this file does not, as delivered.
insert into sync_batches
select
    replace(uuid()::varchar, '-', ''), $lane, $first, $last, $rows, $checksum,
    coalesce((
        select max(schema_version) from change_log
        where log_offset between $first and $last
            and case when $lane = 'change_log' then schema_version = 0 else table_name = $lane and schema_version > 0 end
    ), 0),
    $send_seq, 1, $at, $at

-- Keep a copy of rejected changes, so that retention need not wait for them.
insert into parked_changes
select $id, * from change_log
where log_offset between $first and $last
    and case when $lane = 'change_log' then schema_version = 0 else table_name = $lane and schema_version > 0 end

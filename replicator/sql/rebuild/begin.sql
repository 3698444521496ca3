-- A rebuild, before its first row is copied.
insert into rebuilds (id, table_name, stage, reshaped, log_uuid, state_uuid, asked_by, started_at, updated_at)
values (nextval('rebuilds_id'), $table, 'copying', $reshaped, $log_uuid, $state_uuid, $actor, $at, $at)

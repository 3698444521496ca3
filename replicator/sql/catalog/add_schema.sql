-- A table's new version, in force from the next offset on.
insert into table_schemas
select ?, ?, (select coalesce(max(log_offset), 0) + 1 from change_log), ?, ?, ?

-- Deletes of keys of which no row was ever seen.
select key, min(log_offset) from change_log l
where table_name = $table and schema_version > 0 and op = 'd'
    and not exists (select 1 from rebuild_keys k where k.table_name = $table and k.old_key = l.key)
group by key order by 2 limit $limit

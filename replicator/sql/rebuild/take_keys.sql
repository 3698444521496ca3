-- Give a table's logged changes their new keys.
update change_log set key = k.new_key
from rebuild_keys k
where change_log.table_name = $table and change_log.schema_version > 0
    and k.table_name = $table and k.old_key = change_log.key and k.new_key <> k.old_key

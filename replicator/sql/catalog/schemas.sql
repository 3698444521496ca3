-- Every version of every declared table, and whether the table was rebuilt for it.
select table_name, schema_version, definition, coalesce(rebuilt, false)
from table_schemas order by table_name, schema_version

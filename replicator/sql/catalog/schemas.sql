-- Every version of every declared table.
select table_name, schema_version, definition from table_schemas order by table_name, schema_version

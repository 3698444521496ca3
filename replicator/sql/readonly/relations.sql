-- The tables and views of the file that a reader may name, in lower case.
select lower(table_name) from duckdb_tables() where database_name = current_database() and schema_name = 'main'
union
select lower(view_name) from duckdb_views()
where database_name = current_database() and schema_name = 'main' and not internal

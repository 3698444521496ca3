-- The statements that made the file's tables and views.
select table_name, sql from duckdb_tables() where not internal
union all
select view_name, sql from duckdb_views() where not internal
order by 1

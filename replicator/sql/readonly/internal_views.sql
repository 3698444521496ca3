-- The views in which DuckDB shows itself: settings, secrets, files and the like, in lower case.
select distinct lower(view_name) from duckdb_views() where internal and schema_name <> 'information_schema'

-- About how many rows each table holds, as DuckDB estimates it.
select table_name, estimated_size from duckdb_tables() where not internal order by 1

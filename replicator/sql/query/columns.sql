-- The columns, with their types, of every table and view that a reader may name.
select table_name, list(column_name order by column_index), list(data_type order by column_index)
from duckdb_columns()
where database_name = current_database() and schema_name = 'main' and not internal
group by table_name
order by table_name

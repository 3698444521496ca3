-- Our table macros, in lower case: the tables as they were.
select distinct lower(function_name)
from duckdb_functions()
where not internal and function_type = 'table_macro' and database_name = current_database() and schema_name = 'main'

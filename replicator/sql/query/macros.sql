-- Our table macros, with how many arguments each takes.
select function_name, len(parameters)
from duckdb_functions()
where not internal and function_type = 'table_macro' and database_name = current_database() and schema_name = 'main'

-- DuckDB's own functions that compute a value, in lower case; what begins with two underscores is for its planner.
select distinct lower(function_name)
from duckdb_functions()
where internal and function_type in ('scalar', 'aggregate', 'macro', 'window') and not starts_with(function_name, '__')

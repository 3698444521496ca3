-- How many of a table's views and tables stand, where they were made from these very texts.
select count(*)
from (select view_name as name from duckdb_views() union all select table_name from duckdb_tables())
where exists (select 1 from meta where key = $key and value = $digest) and list_contains($names, name)

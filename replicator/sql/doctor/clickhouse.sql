-- In ClickHouse: our tables with the statements that made them and what they hold.
select name, create_table_query, total_rows, total_bytes
from system.tables
where database = currentDatabase() and name in {tables:Array(String)}
order by name

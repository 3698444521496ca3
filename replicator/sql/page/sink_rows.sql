-- ClickHouse: how many rows each table holds, as its parts say; copies that a resend left count until they are merged.
select name, total_rows from system.tables where database = currentDatabase() and has({tables:Array(String)}, name)

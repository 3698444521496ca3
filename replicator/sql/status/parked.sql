-- Rows parked per table.
select table_name, sum(row_count)::bigint from failed_syncs where status = 'open' group by table_name

-- Open rows of failed_syncs, of one lane or of all.
select id, table_name, first_offset, last_offset, row_count, reason, attempts
from failed_syncs
where status = 'open' and ($lane is null or table_name = $lane)
order by first_offset

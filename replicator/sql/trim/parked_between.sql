-- Where open failed ranges begin and end.
select min(first_offset), max(last_offset) from failed_syncs where status = 'open'

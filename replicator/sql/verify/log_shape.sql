-- How many changes the log holds, how many different offsets, the first and the last.
select count(*), count(distinct log_offset), coalesce(min(log_offset), 1), coalesce(max(log_offset), 0) from change_log

-- The keys of some offsets.
select log_offset, key from change_log
where log_offset between $first and $last and log_offset in (select unnest($offsets)) and key is not null

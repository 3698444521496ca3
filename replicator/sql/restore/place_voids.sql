-- The offsets of a window that nobody holds.
insert into foreseen (log_offset, op)
select log_offset, 'v' from range($first, $last + 1) as offsets(log_offset)
where log_offset not in (select log_offset from foreseen where log_offset between $first and $last)

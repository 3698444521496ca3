-- The timeline, the head, and how many changes stand in the last hundred thousand offsets (to notice a hole).
with ends as (select coalesce(max(log_offset), 0) as head, coalesce(min(log_offset), 0) as first_offset from change_log),
tail as (
    select head, greatest(first_offset, head - 100000) as tail_first from ends
)
select
    coalesce((select value::integer from meta where key = 'timeline'), 1),
    head,
    (select count(*) from change_log where log_offset >= tail_first),
    tail_first
from tail

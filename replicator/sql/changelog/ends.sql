-- The timeline, the head, how many changes stand in the last hundred thousand offsets (to notice a hole), and the first.
-- Where retention has left no change at all, the head is what was delivered: no offset is given twice.
with passed as (
    select greatest(
        coalesce((select max(log_offset) from checkpoints), 0), coalesce((select max(last_offset) from sync_batches), 0)
    ) as head
),
logged as (select max(log_offset) as newest, min(log_offset) as oldest from change_log),
ends as (
    select coalesce(newest, passed.head) as last_offset, coalesce(oldest, passed.head + 1) as first_offset from logged, passed
),
tail as (
    select first_offset, last_offset, greatest(first_offset, last_offset - 100000) as tail_first from ends
)
select
    coalesce((select value::integer from meta where key = 'timeline'), 1),
    last_offset,
    (select count(*) from change_log where log_offset >= tail_first),
    tail_first,
    first_offset
from tail

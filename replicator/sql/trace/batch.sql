-- The batch of a lane that covers an offset.
select first_offset, last_offset, row_count, checksum, send_seq, attempt, frozen_at, delivered_at
from sync_batches
where table_name = $lane and first_offset <= $offset and last_offset >= $offset
order by delivered_at desc nulls last
limit 1

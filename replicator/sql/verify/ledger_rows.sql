-- Delivered batches of a table in one group of offsets, as the ledger has them.
select first_offset, last_offset, row_count, checksum
from sync_batches
where table_name = $table and delivered_at is not null
    and first_offset >= $low and last_offset <= $last and last_offset between $first and $until

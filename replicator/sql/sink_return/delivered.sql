-- A lane's delivered batches in the order of their offsets, and when each was delivered.
select
    batch_id, table_name, first_offset, last_offset, row_count, checksum, schema_version, send_seq, attempt, delivered_at
from sync_batches
where table_name = ? and delivered_at is not null
order by first_offset

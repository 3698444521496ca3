-- Frozen batches whose delivery is not recorded.
select batch_id, table_name, first_offset, last_offset, row_count, checksum, schema_version, send_seq, attempt
from sync_batches
where delivered_at is null
order by table_name, first_offset

-- Where each lane's last batch ends and how far its checkpoint is.
select
    coalesce(c.table_name, b.table_name),
    coalesce(b.batched, 0),
    coalesce(c.log_offset, 0)
from checkpoints c
full join (select table_name, max(last_offset) as batched from sync_batches group by table_name) b using (table_name)

-- What of a lane's delivered batches is parked, and why, by batch, in the order of offsets.
select b.batch_id, f.first_offset, f.last_offset, f.reason
from sync_batches b join failed_syncs f
    on f.table_name = b.table_name and f.first_offset <= b.last_offset and f.last_offset >= b.first_offset
where b.table_name = ? and b.delivered_at is not null and f.status <> 'resolved'
order by f.first_offset

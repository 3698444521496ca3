-- Each lane's oldest range that is parked without a copy.
select table_name, min(first_offset), arg_min(last_offset, first_offset)
from failed_syncs f
where status = 'open' and not exists (from parked_changes p where p.failed_sync_id = f.id)
group by table_name

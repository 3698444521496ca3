-- Tables whose checkpoint has passed changes that no batch holds: where it stands, where the batches end, how many.
with batched as (
    select table_name, max(last_offset) as ended from sync_batches group by table_name
),
stands as (
    select c.table_name, c.log_offset as checkpoint, coalesce(b.ended, 0) as ended
    from checkpoints c left join batched b using (table_name)
    where c.log_offset > coalesce(b.ended, 0)
)
select s.table_name, s.checkpoint, s.ended, count(*)
from stands s join change_log l
    on l.log_offset > s.ended and l.log_offset <= s.checkpoint
    and case when s.table_name = 'change_log' then l.schema_version = 0 else l.table_name = s.table_name and l.schema_version > 0 end
group by s.table_name, s.checkpoint, s.ended

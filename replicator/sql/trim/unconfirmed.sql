-- The first change of each stream that the sink does not have: behind its lane's checkpoint, or in an open failed range.
with batched as (
    select table_name as lane, max(last_offset) as ended, min(first_offset) filter (delivered_at is null) as undelivered
    from sync_batches group by table_name
),
stands as (
    select
        coalesce(b.lane, c.table_name) as lane,
        coalesce(b.undelivered - 1, greatest(b.ended, c.log_offset), 0) as checkpoint
    from batched b full join checkpoints c on c.table_name = b.lane
),
failed as (
    select table_name as lane, first_offset, last_offset from failed_syncs where status = 'open'
),
changes as (
    select
        case when schema_version = 0 then 'change_log' else table_name end as lane,
        log_offset, stream, stream_epoch, entry_id
    from change_log
    where schema_version >= 0 and (
        log_offset > coalesce((select min(checkpoint) from stands), 0)
        or log_offset between (select min(first_offset) from failed) and (select max(last_offset) from failed)
    )
),
unconfirmed as (
    select c.stream, c.stream_epoch, c.entry_id, c.log_offset
    from changes c left join stands s using (lane)
    where c.log_offset > coalesce(s.checkpoint, 0)
    union all
    select c.stream, c.stream_epoch, c.entry_id, c.log_offset
    from changes c join failed f on f.lane = c.lane and c.log_offset between f.first_offset and f.last_offset
)
select stream, arg_min(stream_epoch, log_offset), arg_min(entry_id, log_offset) from unconfirmed group by stream

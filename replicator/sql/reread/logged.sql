-- What the log and the rejected entries hold of a stream behind an entry id, in the order of the ids.
create or replace temp table $table as
with logged as (
    select
        entry_id, entry_row, stream_epoch, table_name, key,
        exists (
            select 1 from log_returns r where change_log.log_offset > r.log_head and change_log.log_offset <= r.top_offset
        ) as fetched,
        hash(table_name, op, key, payload, producer_schema, event_id, event_at) as content
    from change_log where stream = $stream
    union all
    select entry_id, entry_row, stream_epoch, null, null, false, hash(raw) from rejected_entries where stream = $stream
), placed as (
    select
        split_part(entry_id, '-', 1)::uhugeint * 18446744073709551616 + split_part(entry_id, '-', 2)::uhugeint as place,
        *
    from logged
)
select * from placed
where place > $after::uhugeint
order by place

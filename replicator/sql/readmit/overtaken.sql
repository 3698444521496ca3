-- Entries of which a key has a newer change: a later one of the same stream, or one of another stream logged since.
with logged as (
    select table_name, key, stream, logged_at, (
        stream_epoch, split_part(entry_id, '-', 1)::ubigint, split_part(entry_id, '-', 2)::ubigint, entry_row
    ) as place
    from change_log
    where (table_name, key) in (select (table_name, key) from readmitted)
)
select distinct r.entry_index
from readmitted r
join logged l on l.table_name = r.table_name and l.key = r.key
where case
    when l.stream = r.stream then l.place > (
        r.stream_epoch, split_part(r.entry_id, '-', 1)::ubigint, split_part(r.entry_id, '-', 2)::ubigint, r.entry_row
    )
    else l.logged_at > r.rejected_at
end

-- How many entries of one epoch were fetched that Redis no longer holds, and the last of them.
with fetched as (
    select
        entry_id,
        split_part(entry_id, '-', 1)::uhugeint * 18446744073709551616 + split_part(entry_id, '-', 2)::uhugeint as place
    from change_log
    where log_offset > $head and schema_version >= 0 and stream = $stream and stream_epoch = $epoch
)
select count(distinct entry_id), arg_max(entry_id, place) from fetched
where place > $after::uhugeint and place < $before::uhugeint

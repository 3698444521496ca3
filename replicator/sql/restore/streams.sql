-- By stream of the newest epoch: how many entries were delivered, how many of them stand below $before, the last id of
-- all, and the last one that was logged before the first offset that nobody holds.
with placed as (
    select
        stream, stream_epoch, entry_id, log_offset,
        split_part(entry_id, '-', 1)::uhugeint * 18446744073709551616 + split_part(entry_id, '-', 2)::uhugeint as place
    from change_log where op <> 'v' and stream = $stream
),
newest as (
    select * from placed where stream_epoch = (select max(stream_epoch) from placed)
),
gone as (
    select coalesce(min(log_offset), 9223372036854775807) as first_void from change_log where op = 'v'
)
select
    count(distinct entry_id),
    count(distinct entry_id) filter (place < $before::uhugeint),
    arg_max(entry_id, place),
    arg_max(entry_id, place) filter (log_offset < (select first_void from gone))
from newest

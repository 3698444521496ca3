-- The first change of a range whose entry Redis may still hold: by stream, between the milliseconds of its first and last.
with held as (
    select unnest($streams::varchar[]) as stream, unnest($lows::ubigint[]) as low, unnest($highs::ubigint[]) as high
)
select min(c.log_offset)
from change_log c join held h using (stream)
where c.log_offset between $first and $last and split_part(c.entry_id, '-', 1)::ubigint between h.low and h.high

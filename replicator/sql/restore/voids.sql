-- Runs of offsets that nobody holds any more.
with voids as (
    select log_offset, log_offset - row_number() over (order by log_offset) as run from change_log where op = 'v'
)
select min(log_offset), max(log_offset) from voids group by run order by 1

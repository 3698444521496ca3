-- Delivered batches of a table that are compared in part only: they begin below $low, or lie partly in a known range.
with known as (
    select unnest($known_firsts::bigint[]) as first_offset, unnest($known_lasts::bigint[]) as last_offset
)
select schema_version, first_offset, last_offset, checksum
from sync_batches b
where table_name = $table and delivered_at is not null
    and last_offset >= $low and last_offset >= $first and first_offset <= $last and last_offset <= $checkpoint
    and (
        first_offset < $low
        or exists (
            select 1 from known k
            where k.first_offset <= b.last_offset and k.last_offset >= b.first_offset
                and not (k.first_offset <= b.first_offset and k.last_offset >= b.last_offset)
        )
    )
order by first_offset

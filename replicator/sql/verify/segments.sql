-- Delivered batches of a table in runs of about so many rows, and what their frozen checksums add up to. Left out
-- are batches that touch a range of $known_firsts..$known_lasts (parked, discarded) or begin below $low.
with known as (
    select unnest($known_firsts::bigint[]) as first_offset, unnest($known_lasts::bigint[]) as last_offset
),
delivered as (
    select
        schema_version, first_offset, last_offset,
        split_part(checksum, ':', 1)::bigint as rows,
        ('0x' || split_part(checksum, ':', 2))::ubigint as hash_sum,
        ('0x' || split_part(checksum, ':', 3))::ubigint as hash_xor
    from sync_batches b
    where table_name = $table and delivered_at is not null
        and first_offset >= $low and last_offset >= $first and first_offset <= $last and last_offset <= $checkpoint
        and not exists (
            select 1 from known k where k.first_offset <= b.last_offset and k.last_offset >= b.first_offset
        )
),
chained as (
    select *, lag(last_offset) over (partition by schema_version order by first_offset) + 1 = first_offset as follows
    from delivered
),
parted as (
    select
        *,
        count(*) filter (follows is not true) over (partition by schema_version order by first_offset) as run,
        sum(rows) over (partition by schema_version order by first_offset) // $rows as part
    from chained
)
select
    schema_version, min(first_offset), max(last_offset), count(*), sum(rows)::bigint,
    (sum(hash_sum) % 18446744073709551616::hugeint)::ubigint, bit_xor(hash_xor)
from parted
group by schema_version, run, part
order by 2

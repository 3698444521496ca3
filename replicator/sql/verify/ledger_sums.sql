-- Delivered batches of a table in groups of offsets: how many, and a sum over the hashes of what the ledger says of them.
select
    last_offset // $size as part, count(*),
    sum(cast(md5_number(concat(
        first_offset, '-', last_offset, '/', row_count, '/', checksum
    )) & 18446744073709551615::uhugeint as ubigint) % 4294967296)
from sync_batches
where table_name = $table and delivered_at is not null and first_offset >= $low and last_offset <= $last
group by part

-- Count, sum and xor of row hashes, by delivered batch.
select b.batch_id, count(*), (sum(r.h) % 18446744073709551616::hugeint)::ubigint, bit_xor(r.h)
from $rows r
asof join (
    select batch_id, first_offset, last_offset from sync_batches where table_name = $table and delivered_at is not null
) b on r.place >= b.first_offset
where r.place <= b.last_offset
group by b.batch_id

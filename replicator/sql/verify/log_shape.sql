-- How many changes the log holds, its first and last offset, and whether count, sum and sum of squares are those of
-- every offset between them once.
with shape as (
    select
        count(*) as n, coalesce(min(log_offset), 1)::hugeint as a, coalesce(max(log_offset), 0)::hugeint as b,
        coalesce(sum(log_offset), 0) as total, coalesce(sum(log_offset::hugeint * log_offset), 0) as squares
    from change_log
)
select
    n, a::bigint, b::bigint,
    n = b - a + 1 and total = (a + b) * (b - a + 1) // 2
        and squares = b * (b + 1) * (2 * b + 1) // 6 - (a - 1) * a * (2 * a - 1) // 6
from shape

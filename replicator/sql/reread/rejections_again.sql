-- Which of these rejections are kept already.
with again as (
    select
        row_index, entry_row,
        split_part(entry_id, '-', 1)::uhugeint * 18446744073709551616 + split_part(entry_id, '-', 2)::uhugeint as place,
        hash(raw) as content
    from rejections_again
)
select distinct row_index
from again join $table as logged using (place, entry_row, content)
where logged.place >= $first::uhugeint and logged.place <= $last::uhugeint

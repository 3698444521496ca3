-- Which of these changes are older in their stream than a change of their key that was fetched from the sink.
with newest as (
    select table_name, key, max(place) as newest from $table where fetched and key is not null group by table_name, key
), again as (
    select
        row_index, table_name, key,
        split_part(entry_id, '-', 1)::uhugeint * 18446744073709551616 + split_part(entry_id, '-', 2)::uhugeint as place
    from changes_again
)
select row_index from again join newest using (table_name, key) where again.place < newest.newest

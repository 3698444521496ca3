-- Offsets that are not in the log between its first and its last, and offsets that are there more than once.
with counted as (
    select log_offset, count(*) as times from change_log group by log_offset
),
ordered as (
    select log_offset, lead(log_offset) over (order by log_offset) as following from counted
)
select 'missing', log_offset + 1, following - 1 from ordered where following > log_offset + 1
union all
select 'doubled', log_offset, log_offset from counted where times > 1
order by 1, 2
limit $limit

-- The parts of the newest replay that has not come to its end.
select id, table_name, last_offset, sent_through, rate
from replays
where id = (select max(id) from replays where status = 'open')
order by table_name

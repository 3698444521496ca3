-- How far a stream has been read into the log: the last entry, and the row within it where it is not whole.
select last_entry_id, last_entry_row
from stream_positions
where stream = ?
order by stream_epoch desc
limit 1

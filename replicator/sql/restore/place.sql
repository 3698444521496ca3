-- Changes that the sink holds, where they would stand in the log.
insert into foreseen (log_offset, op, stream, stream_epoch, entry_id)
select log_offset, op, stream, stream_epoch, entry_id from held_places

-- What a stream's position needs to notice that entries left Redis unread, or that its history is another.
alter table stream_positions add column entries_unread bigint;
alter table stream_positions add column published_entry_id varchar;
alter table stream_positions add column known_through varchar;

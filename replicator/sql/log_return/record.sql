-- Remember that the log had gone back, how far, and what became of what it had lost.
insert into log_returns (found_at, log_head, top_offset, timeline, fetched, voided) values (?, ?, ?, ?, ?, ?)

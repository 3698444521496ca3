-- Rows that a repair removed from the sink because the log does not have them, kept for whoever must explain them.
create table removed_rows (
    removed_at timestamp not null,
    table_name varchar   not null,
    log_offset bigint    not null,
    row_json   varchar   not null
);

-- One table's part of a replay, before its first row is sent.
insert into replays (
    id, table_name, first_offset, last_offset, sent_through, row_count, sent_rows, rate, asked_by, started_at, updated_at, status
)
values ($id, $table, $first, $last, $first - 1, $rows, 0, $rate, $actor, $at, $at, 'open')

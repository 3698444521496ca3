-- How far one table's part of a replay has come.
update replays set sent_through = $through, sent_rows = sent_rows + $rows, updated_at = $at
where id = $id and table_name = $table

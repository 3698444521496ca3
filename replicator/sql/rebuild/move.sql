-- How far a table's rebuild has come.
update rebuilds set stage = $to, updated_at = $at where table_name = $table and stage = $from

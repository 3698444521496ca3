-- Keys that would become several.
select old_key, string_agg(new_key, ' and ' order by new_key) from rebuild_keys
where table_name = $table group by old_key having count(distinct new_key) > 1 order by 1 limit $limit

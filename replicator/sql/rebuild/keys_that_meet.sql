-- Keys that would become one.
select new_key, string_agg(old_key, ' and ' order by old_key) from rebuild_keys
where table_name = $table group by new_key having count(distinct old_key) > 1 order by 1 limit $limit

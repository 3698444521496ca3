-- The claims of the window, the oldest first.
with newest as (
    select id_hash, content_hash, claimed_at, rowid as place
    from claimed_ids where claimed_at >= $oldest
    order by place desc limit $ids
)
select id_hash, content_hash, epoch(claimed_at) as claimed_at from newest order by place

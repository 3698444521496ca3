-- Forget claims that are older than the window, or behind so many newer ones.
delete from claimed_ids
where claimed_at < greatest(
    $oldest, coalesce((select claimed_at from claimed_ids order by claimed_at desc limit 1 offset $ids), $oldest)
)

-- What is parked, rejected and lost: counts, and how long the oldest has waited.
select
    (select count(*) from failed_syncs where status = 'open'),
    (select coalesce(sum(row_count), 0)::bigint from failed_syncs where status = 'open'),
    (select epoch(min(first_failed_at)) from failed_syncs where status = 'open'),
    (
        select epoch(min(p.logged_at))
        from parked_changes p join failed_syncs f on p.failed_sync_id = f.id
        where f.status = 'open'
    ),
    (select count(*) from rejected_entries where status = 'open'),
    (select count(*) from stream_gaps where status = 'open'),
    (
        select case when count(*) = count(entries_lost) then coalesce(sum(entries_lost), 0)::bigint end
        from stream_gaps where status = 'open'
    ),
    (select count(*) from change_log)

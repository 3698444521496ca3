-- The newest epoch of each stream among the fetched changes, and its highest entry id of any epoch.
with fetched as (
    select
        stream, stream_epoch, entry_id,
        split_part(entry_id, '-', 1)::uhugeint * 18446744073709551616 + split_part(entry_id, '-', 2)::uhugeint as place
    from change_log where log_offset > $head and schema_version >= 0
)
select stream, max(stream_epoch), arg_max(entry_id, place) from fetched group by stream

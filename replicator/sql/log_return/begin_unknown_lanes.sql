-- Lanes with changes in the log and no position of their own start at its beginning: a ledger taken over for one lane
-- says nothing about what another still has to deliver.
insert into checkpoints
select lane, 0, $at
from (
    select distinct case when schema_version = 0 then 'change_log' else table_name end as lane
    from change_log
    where schema_version >= 0
) lanes
where lane not in (select table_name from checkpoints union all select table_name from sync_batches)

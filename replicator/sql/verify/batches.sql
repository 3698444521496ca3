-- The delivered batches of a table within a range of whole batches.
select schema_version, first_offset, last_offset, checksum
from sync_batches
where table_name = $table and schema_version = $schema_version and delivered_at is not null
    and first_offset >= $first and last_offset <= $last
order by first_offset

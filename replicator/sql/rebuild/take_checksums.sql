-- Give delivered batches the checksums that they have under the new shape.
update sync_batches set checksum = n.checksum
from new_checksums n
where sync_batches.batch_id = n.batch_id and sync_batches.table_name = $table

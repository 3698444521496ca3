-- Where each lane's last recorded batch ends.
select table_name, max(last_offset) from sync_batches where delivered_at is not null group by table_name

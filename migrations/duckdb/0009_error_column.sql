-- The column at fault, where ClickHouse names it. A table under a name of its own gets it when the ledger opens it.
alter table failed_syncs add column error_column varchar;

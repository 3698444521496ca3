-- The change log, where each stream stands, and what was delivered, parked, rejected or lost.
-- zstd is cheaper to write than what DuckDB would choose for such texts (0.65 against 1.03 CPU s per million changes),
-- takes half the space and is as fast to read.

create table change_log (
    log_offset      bigint    not null,
    version         ubigint   not null,
    table_name      varchar   not null,
    op              varchar   not null,
    key             varchar,
    payload         varchar   using compression zstd,
    schema_version  integer   not null,
    producer_schema varchar,
    event_id        varchar   using compression zstd,
    event_at        timestamp,
    logged_at       timestamp not null,
    stream          varchar   not null,
    stream_epoch    integer   not null,
    entry_id        varchar   not null using compression zstd,
    entry_row       integer   not null
);

create table stream_positions (
    stream         varchar   not null,
    stream_epoch   integer   not null,
    last_entry_id  varchar   not null,
    last_entry_row integer,
    entries_read   bigint    not null,
    updated_at     timestamp not null
);

create table checkpoints (
    table_name varchar   not null,
    log_offset bigint    not null,
    updated_at timestamp not null
);

create table sync_batches (
    batch_id       varchar   not null,
    table_name     varchar   not null,
    first_offset   bigint    not null,
    last_offset    bigint    not null,
    row_count      bigint    not null,
    checksum       varchar   not null,
    schema_version integer   not null,
    send_seq       bigint    not null,
    attempt        integer   not null,
    frozen_at      timestamp not null,
    delivered_at   timestamp
);

create sequence failed_syncs_id;
create sequence rejected_entries_id;
create sequence stream_gaps_id;
create sequence operator_actions_id;

create table failed_syncs (
    id              bigint    not null default nextval('failed_syncs_id'),
    table_name      varchar   not null,
    first_offset    bigint    not null,
    last_offset     bigint    not null,
    row_count       bigint    not null,
    reason          varchar   not null,
    error_code      varchar,
    error_message   varchar,
    attempts        integer   not null,
    first_failed_at timestamp not null,
    last_failed_at  timestamp not null,
    status          varchar   not null,
    note            varchar
);

create table parked_changes as select 0::bigint as failed_sync_id, * from change_log limit 0;

create table rejected_entries (
    id           bigint    not null default nextval('rejected_entries_id'),
    stream       varchar   not null,
    stream_epoch integer   not null,
    entry_id     varchar   not null,
    entry_row    integer   not null,
    raw          blob      not null,
    reason       varchar   not null,
    rejected_at  timestamp not null,
    status       varchar   not null
);

create table stream_gaps (
    id              bigint    not null default nextval('stream_gaps_id'),
    stream          varchar   not null,
    after_entry_id  varchar,
    before_entry_id varchar,
    entries_lost    bigint,
    cause           varchar   not null,
    found_at        timestamp not null,
    status          varchar   not null
);

create table operator_actions (
    id       bigint    not null default nextval('operator_actions_id'),
    asked_at timestamp not null,
    actor    varchar   not null,
    action   varchar   not null,
    subject  varchar,
    effect   varchar
);

create table table_schemas (
    table_name     varchar   not null,
    schema_version integer   not null,
    first_offset   bigint    not null,
    definition     varchar   not null,
    created_at     timestamp not null
);

-- Rebuilt tables: how far each rebuild has come, so that one that was cut short ends cleanly; and, while the key of a
-- table changes, what each old key becomes.
alter table table_schemas add column rebuilt boolean;

create sequence rebuilds_id;

create table rebuilds (
    id         bigint    not null,
    table_name varchar   not null,
    stage      varchar   not null,
    reshaped   boolean   not null,
    log_uuid   varchar   not null,
    state_uuid varchar   not null,
    asked_by   varchar   not null,
    started_at timestamp not null,
    updated_at timestamp not null
);

create table rebuild_keys (
    table_name varchar not null,
    old_key    varchar not null,
    new_key    varchar not null
);

-- Replays and how far each has come, one row per table: after a kill one goes on where it was.
create sequence replays_id;

create table replays (
    id           bigint    not null,
    table_name   varchar   not null,
    first_offset bigint    not null,
    last_offset  bigint    not null,
    sent_through bigint    not null,
    row_count    bigint    not null,
    sent_rows    bigint    not null,
    rate         double,
    asked_by     varchar   not null,
    started_at   timestamp not null,
    updated_at   timestamp not null,
    status       varchar   not null
);

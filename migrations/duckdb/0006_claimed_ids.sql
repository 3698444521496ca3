-- Idempotency keys within their window: hashed with stream and table, and what they stood for.
create table claimed_ids (
    id_hash      ubigint   not null,
    content_hash ubigint   not null,
    claimed_at   timestamp not null
);

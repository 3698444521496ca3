-- Each time the log had gone back: where it stood, the highest offset that had ever been used, what was fetched and
-- what nobody held any more. An entry read again counts as superseded by what was fetched in such a range.
create table log_returns (
    found_at       timestamp not null,
    log_head       bigint    not null,
    top_offset     bigint    not null,
    timeline       integer   not null,
    fetched        bigint    not null,
    voided         bigint    not null
);

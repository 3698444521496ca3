-- How far each declared table's changes are folded into its T_state.
create table fold_positions (
    table_name     varchar   not null,
    applied_offset bigint    not null,
    updated_at     timestamp not null
);

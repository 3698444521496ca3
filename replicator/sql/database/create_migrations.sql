-- Which migrations this file has had, and the small facts that belong to the file.
create table if not exists schema_migrations (name varchar not null, checksum varchar not null, applied_at timestamp not null);
create table if not exists meta (key varchar not null, value varchar not null);

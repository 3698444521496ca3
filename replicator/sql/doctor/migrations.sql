-- The applied migrations.
select name, applied_at from schema_migrations order by name

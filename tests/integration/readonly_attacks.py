"""What somebody may try through a query, by kind: ``{out}``, ``{secret}`` … stand for real paths."""

from __future__ import annotations

CANARY = "hidden-7f3a91"

SEVERAL = [
    "select 1; select 2",
    "select 1; delete from change_log",
    "select 1;;drop table change_log",
    "; delete from change_log",
    "select 1;\n-- x\ninsert into meta values ('a', 'b')",
    "begin; delete from change_log; commit",
    "commit",
    "rollback",
    "begin transaction",
    "select 1 \x00; delete from change_log",
]

WRITES = """
delete from change_log
update meta set value = 'x'
insert into meta values ('a', 'b')
truncate change_log
drop table change_log
drop view trades
alter table change_log add column x int
create table x as select 1
create temp table x as select 1
create or replace view trades as select 1
create macro m() as 1
create sequence s
create schema s
create index i on change_log (log_offset)
create type t as enum ('a')
create trigger t after insert on meta for each row execute select 1
merge into meta using (select 'a' key) s on meta.key = s.key when matched then delete
comment on table change_log is 'x'
vacuum
vacuum analyze change_log
analyze
checkpoint
force checkpoint
prepare p as delete from change_log
execute p
deallocate p
explain analyze delete from change_log
explain select 1
call force_checkpoint()
select * into x from change_log
with t as (delete from change_log returning *) select * from t
with t as (insert into meta values ('a', 'b') returning *) select * from t
with t as (update meta set value = 'x' returning *) select * from t
with t as materialized (delete from meta returning key) select (select count(*) from t)
with recursive t as (delete from meta returning key) from t
with a as (with b as (delete from meta returning *) from b) from a
select (with t as (delete from meta returning 1) select count(*) from t)
select exists (with t as (delete from meta returning 1) from t)
from (with t as (delete from meta returning *) from t)
select 1 union all (with t as (delete from meta returning 1) from t)
/* select */ delete /* x */ from change_log
DELETE FROM "change_log"
\u200bdelete from change_log
(delete from change_log)
from (delete from change_log returning *)
select nextval('failed_syncs_id')
select currval('failed_syncs_id')
select setval('failed_syncs_id', 1000)
select NEXTVAL('failed_syncs_id')
select main.nextval('failed_syncs_id')
select list_transform([1], lambda x: nextval('failed_syncs_id'))
select 'failed_syncs_id'.nextval()
from query('delete from change_log')
from query('select nextval(''failed_syncs_id'')')
from json_execute_serialized_sql(json_serialize_sql('select 1'))
select write_log('x')
from truncate_duckdb_logs()
from checkpoint()
from force_checkpoint()
pragma force_checkpoint
select setseed(0.5)
""".strip().splitlines()

FILES = """
copy change_log to '{out}'
copy (select 1) to '{out}' (format parquet)
copy meta from '{secret}'
export database '{out}'
import database '{directory}'
attach '{out}' as other
attach '{database}' as again
attach ':memory:' as m
detach replicator
use memory
with t as (copy change_log to '{out}') select * from t
with t as (copy (select 1) to '{out}' (format csv)) from t
select * from read_csv('{secret}')
select * from read_csv_auto('{secret}')
select * from read_text('{secret}')
select * from read_blob('{secret}')
select * from read_json('{secret}')
select * from read_json_objects('{secret}')
select * from read_ndjson('{secret}')
select * from read_parquet('{secret}')
select * from parquet_scan('{secret}')
select * from parquet_metadata('{secret}')
select * from read_duckdb('{database}')
select * from sniff_csv('{secret}')
select * from glob('{directory}/*')
select * from glob('/etc/*')
select * from '{secret}'
select * from "{secret}"
from '/etc/passwd'
from 'https://example.org/x.csv'
from read_csv('https://example.org/x.csv')
from 's3://bucket/x.parquet'
with "{secret}" as (select 1) select * from "{secret}"
select (select content from read_text('{secret}'))
select * from (values (1)) where exists (from read_text('{secret}'))
select * from meta, lateral (select * from read_text('{secret}'))
from query('select * from read_text(''{secret}'')')
from query_table('{secret}')
from query_table(['change_log', '{secret}'])
describe '{secret}'
summarize '{secret}'
describe select * from read_csv('{secret}')
show '{secret}'
select * from pivot_wider('{secret}')
select getenv('CLICKHOUSE_PASSWORD')
select * from duckdb_secrets()
select * from which_secret('s3://x', 's3')
select * from duckdb_temporary_files()
select * from pragma_storage_info('change_log')
install httpfs
load httpfs
load '{secret}'
install '{secret}'
from arrow_scan(1, 2, 3)
from python_map_function()
from pandas_scan(1)
create secret s (type s3)
""".strip().splitlines()

SETTINGS = """
set memory_limit = '1TB'
set global threads = 100
set enable_external_access = true
reset lock_configuration
set allowed_directories = ['/']
set variable a = 1
set schema = 'information_schema'
set search_path = 'x'
set timezone = 'Asia/Tokyo'
set operator_memory_limit = '1TB'
pragma enable_profiling
pragma profiling_output = '{out}'
pragma database_list
pragma version
pragma disable_checkpoint_on_shutdown
call enable_logging(storage = 'file', storage_path = '{out}')
from enable_logging(storage = 'file', storage_path = '{out}')
from enable_profiling(save_location = '{out}')
select current_setting('temp_directory')
select getvariable('a')
select * from duckdb_settings()
select * from duckdb_databases
select * from pragma_database_list
select * from duckdb_databases()
select * from pg_settings
select * from pg_catalog.pg_settings
select * from sqlite_master
select * from duckdb_logs
select * from duckdb_functions()
select * from duckdb_extensions()
select * from information_schema.character_sets
select * from system.information_schema.tables
select * from temp.main.x
select * from other.main.change_log
select * from nothere
with pg_settings as (select * from pg_settings) select * from pg_settings
with a as (select * from pg_settings) select * from a
show databases
show variables
show memory_limit
select sleep_ms(100000)
select pg_sleep(1000)
select json_serialize_plan('select 1')
select to_aggregate_state(1)
from test_all_types()
from seq_scan('change_log')
from duckdb_external_file_cache()
""".strip().splitlines()

SHAPES = {
    "parentheses": "select " + "(" * 40_000 + "1" + ")" * 40_000,
    "minus": "select " + "- " * 49_000 + "1",
    "not": "select " + "not " * 24_000 + "true",
    "sum": "select " + "1+" * 49_000 + "1",
    "lists": "select " + "[" * 40_000 + "1" + "]" * 40_000,
    "cases": "select " + "case when true then " * 4_000 + "1" + " end" * 4_000,
    "subqueries": "select " + "(select " * 10_000 + "1" + ")" * 10_000,
    "tables": "select * from " + "(select * from " * 6_000 + "(select 1)" + ")" * 6_000,
    "functions": "select " + "abs(" * 19_000 + "1" + ")" * 19_000,
    "lambdas": "select " + "list_transform([1], lambda x: " * 30 + "1" + ")" * 30,
    "dots": "select a" + ".a" * 49_000,
    "casts": "select 1" + "::int" * 19_000,
    "structs": "select " + "{'a':" * 15_000 + "1" + "}" * 15_000,
    "comments": "select 1 " + "/*" * 40_000,
    "literal": "select '" + "x" * 900_000 + "'",
    "identifier": 'select "' + "x" * 900_000 + '"',
    "number": "select " + "9" * 90_000,
    "surrogate": "select '\ud800'",
    "nothing": " \t\n",
    "unclosed": "select 'abc",
    "unclosed comment": "select 1 /*",
    "dollars": "select $$abc",
    "right to left": "select \u202e1 from change_log elete",
}

EXHAUSTION = [
    "select count(*) from range(10000000) a, range(10000000) b, range(10000000) c where a.range + b.range = c.range",
    "with recursive r as (select 1 n union all select n + 1 from r) select count(*) from r",
    "with recursive r as (select 1 n union all select n + 1 from r, range(1000)) select count(*) from r",
    "select repeat('x', 1000000000) from range(1000)",
    "select repeat('x', 3000000 + i) from range(100000) t(i)",
    "select list(i) from range(100000000000) t(i)",
    "select string_agg(repeat('x', 1000000), '') from range(1000000)",
    "select list_resize([1], 4000000000)",
    "select range(1000000000000)",
    "select [x for x in range(1000000000)]",
    "select list_reduce(list_prepend('x', [b::varchar for b in range(60)]), lambda a, b: a || a) from range(2048)",
    "select * from range(1000000000) t(i) order by random()",
    "select count(distinct random()) from range(10000000000)",
    "select a.i from (select random() i from range(100000000)) a join (select random() i from range(100000000)) b using (i)",
    "select row_number() over (order by random()) from range(1000000000)",
    "select regexp_matches(repeat('a', 100000), '(a+)+$') from range(100000000)",
    "select levenshtein(repeat('a', 100000), repeat('b', 100000)) from range(1000)",
    "select unnest(range(1000000000))",
    "select json_pretty(repeat('[', 10000000))",
    "select from_json(repeat('[', 100000) || repeat(']', 100000), '[\"JSON\"]')",
    "select printf('%1000000000d', 1) from range(1000)",
    "select format('{:>1000000000}', 'x') from range(1000)",
    "select bitstring('1', 2000000000) from range(100)",
    "select * from change_log a, change_log b, change_log c, change_log d, range(1000000)",
    "select 10::bigint ** i from range(1000000000) t(i) group by all",
    "select factorial(i::int) from range(100000) t(i)",
]

HARMLESS = {
    "select 1 a -- ; delete from change_log": [{"a": 1}],
    "select 1 a /* ; delete from change_log */;": [{"a": 1}],
    "select 'delete from change_log; --' a": [{"a": "delete from change_log; --"}],
    "select $$';drop table x$$ a": [{"a": "';drop table x"}],
    "sElEcT 1 a": [{"a": 1}],
    "select 1 as \"drop table change_log\"": [{"drop table change_log": 1}],
    "with meta as (select 1 a) select * from meta": [{"a": 1}],
    "with recursive r as (select 1 a union all select a + 1 from r where a < 3) select max(a) a from r": [{"a": 3}],
}  # fmt: skip

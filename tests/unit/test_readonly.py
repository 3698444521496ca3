"""What the judge of readers' queries lets pass, and that the locked instance beneath it holds by itself."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from replicator.database import Database, DatabaseOptions, Session
from replicator.errors import DatabaseUnavailable, UsageError
from replicator.readonly import QueryRefused, check_query

GOOD = """
select 1
from x
table x
values (1), (2)
(select 1)
select 'it''s', $$a$$, e'\\n', 0x1F, 1_000, 1e3, interval 1 day, date '2020-01-01', timestamp '2020-01-01'
select * from x where i > 1 and s like 'a%' or not i between 1 and 2 or s is null or i is distinct from 3
select * from main.x join "X" b using (i) left join v on true cross join (select 1) positional join x c
select * from x a asof join v b on a.s = b.s and a.i >= b.i
with a as (select 1) select * from a
with tables as (select 1) select * from tables
select * from x semi join v using (i)
with a(b) as not materialized (select 1), c as (from a) select * from a, c
with recursive a as (select 1 n union all select n + 1 from a where n < 3) select * from a
with recursive a using key (n) as (select 1 n union select n + 1 from a where n < 3) from a
with x as (select 5 i) select * from x
select 1 union all select 2 except select 3 intersect select 4
select count(*) filter (where i > 1), sum(i) over (partition by s order by i rows 1 preceding) from x group by i, s
select s, count(*) from x group by cube (s) having count(*) > 0 order by all
select grouping(i) from x group by grouping sets ((i), ())
select case when i = 1 then 2 else 3 end, cast(i as varchar), i::decimal(10, 2), try_cast(s as int) from x
select {'a': 1}, [1, 2], map {1: 2}, [1, 2][1:2], {'a': 1}.a, row(1, 2), array[1, 2]
select list_transform([1], lambda y: y + 1), [y for y in [1, 2] if y > 1], list_filter([1], lambda y: y > 0)
select * exclude (i) replace (s as s), columns('i.*') from x
select (select max(i) from x), exists (select 1), i in (select 1), i in (1, 2), i = any (select 1) from x
select * from x tablesample 10%
select distinct on (i) * from x order by i desc nulls last limit 10 offset 2
select * from x qualify row_number() over (order by i) = 1
select * from range(3) t(i), unnest([1, 2]) u, generate_series(1, 2), json_each('[1]'), json_tree('[1]')
select unnest([1]), unnest({'a': 1})
select s collate nocase from x
select * from x pivot (sum(i) for s in ('a', 'b'))
select * from x unpivot (v for k in (i))
show tables
show all tables
show x
describe x
describe select 1
summarize x
select * from (describe x)
from x select i
select i as "a b" from x y where i = (select count(*) from x where x.i = y.i)
select s->>'a', s->'$.b', json_extract_string(s, '$.a'), to_json(x), from_json(s, '{"a":"INT"}') from x
select coalesce(1, 2), nullif(1, 2), if(true, 1, 2), try(1 / 0), greatest(1, 2), now(), current_date, random(), uuid()
select extract(year from d), d at time zone 'UTC', date_trunc('day', d), strftime(d, '%Y'), epoch_ms(d) from x
select md5(s), sha256(s), hash(s), s || 'a', repeat(s, 2), regexp_replace(s, 'a', 'b'), printf('%d', i), s.upper() from x
select approx_count_distinct(i), median(i), quantile_cont(i, 0.5), arg_max(i, s), list(i), string_agg(s, ','), mode(i) from x
select lag(i) over (order by i), first_value(i) over w, ntile(2) over w, rank() over w from x window w as (order by i)
select * from duckdb_tables()
select * from duckdb_columns
select * from information_schema.tables, information_schema.columns
select ?, ?
select $1, $2
select $name
select 1 -- a comment; delete from x
select 1 /* ; delete from x */;
select 'delete from x; drop table x'
""".strip().splitlines()

UNLOCKED_HOLDS = """
with t as (delete from x returning *) from t
with t as (insert into x values (1, 'a', null) returning *) from t
with t as (update x set i = 1 returning *) from t
with t as (copy x to '{out}') from t
delete from x
drop table x
create table y as select 1
create view y as select 1
alter table x add column y int
select nextval('numbers')
select setval('numbers', 100)
copy x to '{out}'
copy x from '{secret}'
export database '{out}'
attach '{out}' as other
attach '{file}' as again
from read_text('{secret}')
from read_blob('{secret}')
from read_csv('{secret}')
from read_json('{secret}')
from read_parquet('{secret}')
from read_duckdb('{secret}')
from glob('{directory}/*')
from sniff_csv('{secret}')
from '{secret}'
install httpfs
load '{secret}'
set enable_external_access = true
reset enable_external_access
set lock_configuration = false
set allowed_configs = ['enable_external_access']
set allowed_directories = ['/']
set allowed_paths = ['{secret}']
set temp_directory = '{directory}'
set log_query_path = '{out}'
set logging_storage = 'file'
call enable_logging(storage = 'file', storage_path = '{out}')
from enable_profiling(save_location = '{out}')
pragma profiling_output = '{out}'
pragma enable_profiling
set python_enable_replacements = true
from force_checkpoint()
""".strip().splitlines()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    directory = tmp_path_factory.mktemp("locked")
    (directory / "secret.txt").write_text("hidden")
    database = Database.open(DatabaseOptions(path=directory / "log.duckdb", threads=2, memory_mb=128))
    session = database.session()
    session.execute("create table x (i integer, s varchar, d timestamp)")
    session.execute("insert into x values (1, '[1]', null), (2, '{}', timestamp '2024-05-06')")
    session.execute("create view v as select * from x")
    session.execute("create sequence numbers")
    session.close()
    yield database
    database.close()


@pytest.fixture
def session(database: Database) -> Session:
    return database.session()


@pytest.mark.parametrize("sql", GOOD)
def test_what_only_reads_our_tables_passes(session: Session, sql: str) -> None:
    check_query(session, sql)


def test_what_passes_also_runs_in_a_read_only_transaction(session: Session) -> None:
    session.execute("begin transaction read only")
    for sql in GOOD:
        if "?" not in sql and "$1" not in sql and "$name" not in sql and "d at time zone" not in sql:
            session.arrow(sql)
    session.execute("rollback")


@pytest.mark.parametrize("sql", UNLOCKED_HOLDS)
def test_the_locked_instance_holds_where_nobody_judges(database: Database, sql: str) -> None:
    session, directory = database.session(), database.options.path.parent
    names = {"out": directory / "out", "secret": directory / "secret.txt", "directory": directory}
    text = sql.format(**names, file=database.options.path)
    before = sorted(path.name for path in directory.iterdir())
    session.execute("begin transaction read only")
    with pytest.raises((duckdb.Error, DatabaseUnavailable)):
        assert "hidden" not in str(session.rows(text))
    session.execute("rollback")
    session.close()
    assert sorted(path.name for path in directory.iterdir()) == before
    assert database.session().rows("select count(*) from x") == [(2,)]


@pytest.mark.parametrize(
    "sql", ["", ";", "-- nothing", "select 1; select 2", "selec 1", "select 1\x00; select 2", "with"]
)
def test_what_is_not_one_statement_is_refused(session: Session, sql: str) -> None:
    with pytest.raises(UsageError):
        check_query(session, sql)


def test_the_refusal_names_what_may_not_be_asked_and_what_may(session: Session) -> None:
    with pytest.raises(QueryRefused, match=r"read_csv.*SELECT"):
        check_query(session, "select * from read_csv('a')")
    with pytest.raises(QueryRefused, match=r"no table nothere.*show tables"):
        check_query(session, "select * from nothere")


def test_a_common_table_expression_may_not_hide_what_duckdb_shows_of_itself(session: Session) -> None:
    with pytest.raises(QueryRefused, match="own name"):
        check_query(session, "with pg_settings as (select * from pg_settings) from pg_settings")


def test_capture_still_hands_arrow_tables_over_by_name(session: Session) -> None:
    with session.relation(handed=pa.table({"i": [1, 2]})):
        assert session.rows("select sum(i) from handed") == [(3,)]


def test_a_locked_instance_still_gives_readers_a_bound_and_raises_its_own_limit(database: Database) -> None:
    session = database.session()
    session.execute("set operator_memory_limit = '32MB'")
    database.relieve()
    assert session.rows("select current_setting('memory_limit')") != [("122.0 MiB",)]

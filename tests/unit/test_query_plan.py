"""What is handed over for a query: enough always, and little where the query says so; the answers are DuckDB's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from replicator.database import Database, DatabaseOptions, Session
from replicator.query import Ask, Queries
from replicator.query_plan import Feed, plan
from replicator.readonly import check_query

COLUMNS = {"i": "INTEGER", "s": "VARCHAR", "p": "DECIMAL(18,6)", "ts": "TIMESTAMP", "u": "UUID"}
RELATIONS = {"t": COLUMNS, "Odd one": {"I": "BIGINT", "a.b": "VARCHAR"}}

CONDITIONS = {
    "select s from t where i = 1": '("i" = 1)',
    "select s from t where i = 1 and s like 'a%' and p > 1.5": '("i" = 1) and ("p" > 1.5)',
    "select s from t where i = 1 or s <> 'it''s'": """(("i" = 1) or ("s" <> 'it''s'))""",
    "select s from t x where x.i between -1 and 1e3": '("i" between -1 and 1e3)',
    "select s from t where i in (1, 2) and s not in ('a') and s is not null and not (i = 3)": (
        """("i" in (1, 2)) and (not ("s" in ('a'))) and ("s" is not null) and (not ("i" = 3))"""
    ),
    "select s from t where ts >= timestamp '2024-01-01' and ts < date '2024-02-01'": (
        """("ts" >= cast('2024-01-01' as TIMESTAMP)) and ("ts" < cast('2024-02-01' as date))"""
    ),
    "select count(*) from t where i = 1 group by s having count(*) > 1 order by 1 limit 3": '("i" = 1)',
    "select (select max(s) from t where i = 1)": '("i" = 1)',
    "with a as (select s from t where i = 1) select * from a x, a y": '("i" = 1)',
    "select r.range from range(3) r where exists (select 1 from t where t.i = r.range and s = 'a')": """("s" = 'a')""",
    "select s from t where i = (select 1)": "",
    "select s from t where random() < 0.5": "",
    "select s from t where y.i = 1": "",
    "select i + 1 as z from t where z = 1": "",
    "select s from t tablesample 10% where i = 1": "",
    "select s from t where i = 1 using sample 3": "",
    "select s from t where i = 1 union all select s from t where i = 2": "",
    "select s from t join (select 1 i) using (i) where i = 1": "",
    "select s from t where i = 99999999999999999999999": '("i" = 99999999999999999999999)',
}

COLUMNS_WANTED = {
    "select count(*) from t": ["i"],
    "select s from t": ["s"],
    "select max(P) from T where S = 'a'": ["s", "p"],
    "select * from t": list(COLUMNS),
    "select t from t": list(COLUMNS),
    "select to_json(x) from t x": list(COLUMNS),
    "select columns('i') from t": list(COLUMNS),
    "select #2 from t": list(COLUMNS),
    "select b from t as x(a, b)": list(COLUMNS),
    "select i.round() from t": ["i"],
    "select p.round(1) from t": ["p"],
    "select 1 from t join (select 1 s) using (s)": ["s"],
    "select 1 from t natural join (select 1 s)": list(COLUMNS),
    "select s, sum(i) over (partition by p order by ts) from t": ["i", "s", "p", "ts"],
    "select s from t qualify row_number() over (order by i) = 1": ["i", "s"],
    "from t pivot (sum(i) for s in ('a'))": list(COLUMNS),
    "summarize t": list(COLUMNS),
    "select list_transform([i], lambda y: y + 1) from t": ["i"],
    "select unnest([s]) from t": ["s"],
    "select s from t where i in (select i from t)": ["i", "s"],
}

EQUAL = """
select count(*) from t
select * from t order by all limit 10
select s, count(*), sum(p) from t where i > 30 and i <= 60 group by s order by s
select * from t where s = 'k3' and ts >= timestamp '2024-01-02' order by i
select i, p * 2 q, s || 'x' from t where p between 10.5 and 20 order by i
select a.i, b.s from t a join t b on a.i = b.i + 1 where b.s = 'k1' order by all
select i from t where i not in (select i from t where i % 2 = 0) order by i
select (select max(i) from t where s = x.s) m, s from (select distinct s from t) x order by s
select s, row_number() over (partition by s order by i) n from t order by s, n limit 7
with recursive r as (select 1 n union all select n + 1 from r where n < 5) select n, s from r join t on t.i = n order by n
with m as (select s, max(i) i from t group by s) select * from m a join m b using (s) order by s
select * from v where even order by i
select count(*) c from v join t using (i)
select u, typeof(u), ts, typeof(p) from t order by i limit 3
select h, typeof(h), e, typeof(e), j, j->>'a' from odd order by all
select st.a, st.b[1], l, m['x'] from odd order by all
from t pivot (sum(i) for s in ('k1', 'k2') group by even) order by all
select * from t where i = 3 union all by name select i, s from t where i = 4 order by i
select s from t where s is null or s = '' order by i
select distinct on (s) s, i from t order by s, i
select t from t order by t.i limit 2
select x.* exclude (u) replace (i + 1 as i) from t x order by x.i limit 2
select sum(i) filter (where s = 'k1') a, count(distinct s) b, median(p) c, string_agg(s, ',' order by i) d from t where i < 9
select * from t asof join (select 5 i2, 3 x) o on t.i >= o.i2 order by i limit 4
select count(*) c from t, lateral (select t.i + 1 k) l where l.k > 50
""".strip().splitlines()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database.open(DatabaseOptions(path=tmp_path_factory.mktemp("plan") / "log.duckdb", threads=2))
    session = database.session()
    session.execute(
        "create table t as select range::integer i, case when range % 7 = 0 then null when range % 11 = 0 then '' else "
        "'k' || range % 5 end s, (range * 1.234567)::decimal(18, 6) p, timestamp '2024-01-01' + range * interval 1 hour as ts, "
        "uuid() u, range % 2 = 0 even from range(100)"
    )
    session.execute("create view v as select i, even, s from t")
    session.execute(
        "create table odd as select 170141183460469231731687303715884105727::hugeint h, 'b'::enum('a', 'b') e, "
        "'{\"a\": 1}'::json j, {'a': 1::hugeint, 'b': [1, 2]} st, [uuid()] l, map {'x': 1} m"
    )
    session.close()
    yield database
    database.close()


@pytest.fixture
def session(database: Database) -> Session:
    return database.session()


@pytest.fixture(scope="module")
def queries(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queries]:
    queries = Queries(database=database, directory=tmp_path_factory.mktemp("queries"))
    yield queries
    queries.close()


def feeds(database: Database, sql: str, parameters: Any = None) -> list[Feed]:
    session = database.session()
    tree = session.row("select json_serialize_sql(?)", [sql])
    assert tree is not None
    return plan(json.loads(tree[0])["statements"][0]["node"], RELATIONS, parameters)


@pytest.mark.parametrize(("sql", "condition"), CONDITIONS.items())
def test_plain_comparisons_are_made_where_the_rows_are(database: Database, sql: str, condition: str) -> None:
    assert feeds(database, sql)[0].condition == condition


@pytest.mark.parametrize(("sql", "columns"), COLUMNS_WANTED.items())
def test_only_the_columns_that_may_be_meant_are_handed_over(database: Database, sql: str, columns: list[str]) -> None:
    assert list(feeds(database, sql)[0].columns) == columns


def test_parameters_go_where_the_condition_goes(database: Database) -> None:
    feed = feeds(database, "select ? from t where s = ? and i = ?", ["x", "it's", 3])[0]
    assert (feed.condition, feed.parameters) == ('("s" = ?) and ("i" = ?)', ("it's", 3))
    feed = feeds(database, "select 1 from t where s = $who and i = $n or i = $n", {"who": "a", "n": 1})[0]
    assert (feed.condition, feed.parameters) == ('((("s" = ?) and ("i" = ?)) or ("i" = ?))', ("a", 1, 1))


def test_a_relation_is_read_on_the_fly_only_where_one_pass_is_sure(database: Database) -> None:
    def once(sql: str) -> bool:
        return feeds(database, sql)[0].once

    assert once("select s, count(*) from t where i > 3 group by s order by 2 limit 3")
    assert once("select * from (select * from t) join range(3) r on r.range = i")
    assert not once("select * from t a join t b using (i)")
    assert not once("with a as (from t) from a")
    assert not once("select (select max(i) from t)")
    assert not once("from main.t")
    assert not once("summarize t")


@pytest.mark.parametrize("sql", ["describe t", "show t", "show tables", "select 1", "describe select * from t"])
def test_nothing_is_handed_over_for_what_reads_no_rows(database: Database, sql: str) -> None:
    assert feeds(database, sql) == []


def test_odd_names_and_types_are_quoted_and_made_anew(database: Database) -> None:
    feed = feeds(database, 'select "a.b" from "odd ONE" where "I" = 1')[0]
    assert feed.source_sql == 'select "I", "a.b" from "Odd one" where ("I" = 1)'
    feed = feeds(database, "select u from t")[0]
    assert feed.source_sql == 'select cast("u" as varchar) as "u" from "t"'
    assert feed.target_columns == 'cast("u" as UUID) as "u"'


@pytest.mark.parametrize("sql", EQUAL)
def test_answers_are_those_of_duckdb_itself(queries: Queries, session: Session, sql: str) -> None:
    check_query(session, sql)
    found = pa.ipc.open_stream(b"".join(queries.open(Ask(sql=sql)).start().pieces())).read_all()
    expected = session.arrow(sql)
    assert found.to_pylist() == expected.to_pylist()
    assert found.schema.equals(expected.schema)

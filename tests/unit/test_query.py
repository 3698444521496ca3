"""Readers' queries beside a writer: exact, at one moment, within time, rows and memory, gone when cancelled."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from replicator.capture import CaptureProgress
from replicator.changelog import Append, ChangeLog
from replicator.config import migrations_dir
from replicator.database import Database, DatabaseOptions
from replicator.errors import UsageError
from replicator.model import CHANGE_SCHEMA, REJECTION_SCHEMA, EntryId, StreamPosition
from replicator.query import OPEN_MAX, Ask, Queries, QueriesBusy, QueryFailed, RunningQuery
from replicator.query_formats import DUCKDB_TYPE
from replicator.query_process import MEMORY_MB_MAX, MEMORY_SHARE, QueryProcesses
from replicator.query_question import Format
from replicator.readonly import QueryRefused

ENDLESS = "select count(*) from range(10000000) a, range(10000000) b where a.range + b.range = 3"
EXACT = (
    "select 9007199254740993::bigint b, 12345678901234567890.123456::decimal(38, 6) d, sum(9223372036854775807) s, "
    "340282366920938463463374607431768211455::uhugeint u, '101'::bit i, '10:00:00+02'::timetz z, [1::uhugeint] l"
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=2, memory_mb=128))
    database.migrate(migrations_dir() / "duckdb")
    yield database
    database.close()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueryProcesses]:
    """They are used again from test to test: what one query leaves behind, another would meet."""
    processes = QueryProcesses(directory=tmp_path_factory.mktemp("queries"))
    yield processes
    processes.close()
    assert not list(processes.directory.iterdir()), "no process left a file behind"


@pytest.fixture
def queries(database: Database, processes: QueryProcesses) -> Iterator[Queries]:
    queries = Queries(database=database, directory=processes.directory, progress=CaptureProgress())
    queries.processes = processes
    yield queries
    assert not queries._open, "every query gave everything back"


@pytest.fixture
def cramped(queries: Queries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queries]:
    monkeypatch.setattr("replicator.query_process.MEMORY_MB_MAX", 96)  # soon full
    with closing(QueryProcesses(directory=tmp_path / "small")) as queries.processes:
        yield queries


def text(queries: Queries, sql: str, form: Format = Format.ARROW, **options: Any) -> bytes:
    return b"".join(queries.open(Ask(sql=sql, form=form, **options)).start().pieces())


def answer(queries: Queries, sql: str, **options: Any) -> list[dict[str, Any]]:
    return pa.ipc.open_stream(text(queries, sql, **options)).read_all().to_pylist()


def started(queries: Queries, sql: str, *, seconds: float) -> RunningQuery:
    """A query that has given its first piece, with a time limit as short as the machine allows."""
    while True:
        try:
            return queries.open(Ask(sql=sql, seconds=seconds)).start()
        except QueryFailed as error:
            assert error.code == "time"
            seconds *= 3


def changes(rows: int) -> Append:
    columns = {
        "table_name": ["t"] * rows, "op": ["u"] * rows, "key": ["k"] * rows, "payload": ['{"a":1}'] * rows,
        "schema_version": [0] * rows, "stream": ["s"] * rows, "stream_epoch": [1] * rows, "entry_id": ["1-1"] * rows,
        "entry_row": [0] * rows,
    }  # fmt: skip
    arrays = [pa.array(columns.get(f.name, [None] * rows), f.type) for f in CHANGE_SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=CHANGE_SCHEMA)
    return Append(changes=table, rejections=REJECTION_SCHEMA.empty_table(), positions=())


# ── answers ──


def test_numbers_leave_exactly_as_arrow(queries: Queries) -> None:
    table = pa.ipc.open_stream(text(queries, EXACT)).read_all()
    assert table.to_pylist() == [
        {
            "b": 9007199254740993,
            "d": Decimal("12345678901234567890.123456"),
            "s": Decimal(9223372036854775807),
            "u": "340282366920938463463374607431768211455",
            "i": "101",
            "z": "10:00:00+02",
            "l": "[1]",
        }
    ]
    kinds = [f.metadata[DUCKDB_TYPE] for f in table.schema]
    assert kinds == [
        b"BIGINT",
        b"DECIMAL(38,6)",
        b"HUGEINT",
        b"UHUGEINT",
        b"BIT",
        b"TIME WITH TIME ZONE",
        b"UHUGEINT[]",
    ]


def test_numbers_leave_exactly_as_json(queries: Queries) -> None:
    found = json.loads(text(queries, f"{EXACT}, 1.5 f, 7 n, null x, interval 3 month m, true t", Format.JSON))
    assert found["rows"] == [
        {
            "b": "9007199254740993", "d": "12345678901234567890.123456", "s": "9223372036854775807",
            "u": "340282366920938463463374607431768211455", "i": "101", "z": "10:00:00+02", "l": "[1]",
            "f": "1.5", "n": 7, "x": None, "m": "3 months", "t": True,
        }
    ]  # fmt: skip
    assert found["row_count"] == 1
    assert found["columns"][1] == {"name": "d", "type": "DECIMAL(38,6)"}


def test_texts_leave_as_csv_that_reads_back(queries: Queries) -> None:
    sql = "select 'a,\"b\"\n' s, null n, '' e, 1::decimal(9, 2) d union all select 'x', 'y', 'z', 2"
    rows = list(csv.reader(io.StringIO(text(queries, sql, Format.CSV).decode())))
    assert rows == [["s", "n", "e", "d"], ['a,"b"\n', "", "", "1.00"], ["x", "y", "z", "2.00"]]


def test_equal_names_are_told_apart_in_json(queries: Queries) -> None:
    assert json.loads(text(queries, "select 1 a, 2 a, 3 a", Format.JSON))["rows"] == [{"a": 1, "a_2": 2, "a_3": 3}]


@pytest.mark.parametrize("form", list(Format))
def test_an_empty_answer_has_its_columns(queries: Queries, form: Format) -> None:
    found = text(queries, "select log_offset, payload from change_log", form)
    assert b"log_offset" in found
    assert b"payload" in found


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("select ? + ? c", [1, 2]),
        ("select $1 + $2 c", [1, 2]),
        ("select $a + $b c", {"a": 1, "b": 2}),
        ("select 3 c", None),
    ],
)
def test_parameters_are_values_never_sql(queries: Queries, sql: str, parameters: Any) -> None:
    assert answer(queries, sql, parameters=parameters) == [{"c": 3}]


def test_every_row_comes_once_and_in_order(queries: Queries, database: Database) -> None:
    session = database.session()
    session.execute("create table t as select range i, 'payload ' || range p from range(300000)")
    found = pa.ipc.open_stream(text(queries, "select i, p from t")).read_all()
    assert found.column("i").to_pylist() == list(range(300000))
    assert found.column("p")[299999].as_py() == "payload 299999"


def test_a_relation_named_twice_is_read_twice(queries: Queries, database: Database) -> None:
    database.session().execute("create table t as select range i from range(1000)")
    assert answer(queries, "select count(*) c from t a join t b using (i)") == [{"c": 1000}]
    assert answer(queries, "with a as (from t) select count(*) c from a x, a y where x.i = y.i") == [{"c": 1000}]
    assert answer(queries, "select (select max(i) from t) - (select min(i) from t) c") == [{"c": 999}]
    assert answer(queries, "select count(*) c from main.t") == [{"c": 1000}]


def test_views_are_read_as_tables_are(queries: Queries, database: Database) -> None:
    session = database.session()
    session.execute("create table base as select range i, range % 2 = 0 even from range(10)")
    session.execute('create view "Odd ""ones""" as select i from base where not even')
    assert answer(queries, 'select sum(i)::int s from "odd ""ones"""') == [{"s": 25}]


def test_relations_can_be_listed_and_described_though_their_rows_stay_away(queries: Queries) -> None:
    assert {"name": "change_log"} in answer(queries, "show tables")
    described = {row["column_name"]: row["column_type"] for row in answer(queries, "describe change_log")}
    assert described["version"] == "UBIGINT"
    listed = answer(queries, "select column_name from information_schema.columns where table_name = 'meta'")
    assert listed == [{"column_name": "key"}, {"column_name": "value"}]


def test_what_a_query_left_behind_is_not_there_for_the_next(queries: Queries, database: Database) -> None:
    session = database.session()
    session.execute("create table t as select 1 i")
    assert answer(queries, "from t") == [{"i": 1}]
    session.execute("delete from t")
    assert answer(queries, "from t") == []
    session.execute("drop table t")
    session.execute("create table t as select 'x' s")
    assert answer(queries, "from t") == [{"s": "x"}]


def test_a_query_sees_one_moment_while_the_log_grows(queries: Queries, database: Database) -> None:
    log, session = ChangeLog.open(database), database.session()
    stop, failures = threading.Event(), []
    one = "select count(*) n, max(log_offset) m, count(distinct log_offset) d from change_log"
    two = "select a.n, b.m from (select count(*) n from change_log) a, (select max(log_offset) m from change_log) b"

    def write() -> None:
        try:
            while not stop.is_set():
                log.append(session, changes(500))
        except Exception as error:
            failures.append(error)

    log.append(session, changes(500))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = []
        for _ in range(6):
            (row,) = answer(queries, one)
            (pair,) = answer(queries, two)
            assert row["n"] == row["m"] == row["d"]
            assert pair["n"] == pair["m"]
            seen.append(row["n"])
    finally:
        stop.set()
        writer.join()
    assert not failures
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


# ── limits ──


def test_a_query_is_stopped_when_its_time_is_up(queries: Queries) -> None:
    with pytest.raises(QueryFailed, match=r"longer than 0.3 s") as raised:
        text(queries, ENDLESS, seconds=0.3)
    assert raised.value.code == "time"


def test_a_query_nobody_reads_on_is_stopped_too(queries: Queries) -> None:
    query = started(queries, "from range(100000000)", seconds=1)
    pieces = query.pieces()
    next(pieces)
    while query.cancelled is None:
        threading.Event().wait(0.01)
    with pytest.raises(QueryFailed, match="longer"):
        list(pieces)


def test_a_query_that_gives_too_many_rows_fails_rather_than_being_cut(queries: Queries) -> None:
    with pytest.raises(QueryFailed, match="more than 1,000 rows") as raised:
        text(queries, "from range(100000)", rows_max=1000)
    assert raised.value.code == "rows"
    assert len(answer(queries, "from range(1000)", rows_max=1000)) == 1000


def test_a_limit_stops_the_reading_of_a_long_table(queries: Queries, database: Database) -> None:
    database.session().execute("create table t as select range i, repeat('x', 100) p from range(2000000)")
    assert len(answer(queries, "from t limit 3")) == 3


def test_a_cancelled_query_ends_at_once(queries: Queries) -> None:
    query = queries.open(Ask(sql=ENDLESS))
    threading.Timer(0.3, query.cancel, [QueryFailed("the client left", code="left")]).start()
    with pytest.raises(QueryFailed, match="the client left"):
        query.start()


def test_a_query_cancelled_before_it_starts_never_does(queries: Queries) -> None:
    query = queries.open(Ask(sql="select 1"))
    query.cancel(QueryFailed("the client left", code="left"))
    with pytest.raises(QueryFailed, match="the client left"):
        query.start()


@pytest.mark.parametrize(
    "sql",
    [
        "select repeat('x', 300000000 + i) from range(100000) t(i)",
        "select lpad('x', 2000000000, 'y') from range(100)",
        "select lpad('x', 3000000 + i, 'y') from range(100000) t(i)",
        "select list_reduce(list_prepend('x', [b::varchar for b in range(40)]), lambda a, b: a || a) from range(3000)",
        "select list_resize([1], 2000000000)",
        "select [j for j in range(100000000)] from range(100)",
        "select string_agg(repeat('x', 1000), '') from range(100000000)",
        "select list(repeat('x', 1000000)) from range(100000)",
        "select list(i) from range(10000000000) t(i)",
        "with a as (select repeat('x', 4000000) s) select s || s || s || s || s from a, range(100000)",
    ],
)
def test_a_query_that_wants_all_memory_fails_alone(cramped: Queries, database: Database, sql: str) -> None:
    log, session, stop = ChangeLog.open(database), database.session(), threading.Event()

    def write() -> None:
        while not stop.wait(0.02):
            log.append(session, changes(1000))

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write)
        try:
            with pytest.raises(QueryFailed) as raised:
                text(cramped, sql, seconds=4)
        finally:
            stop.set()
        writing.result()
    assert raised.value.code in ("memory", "query", "time"), raised.value
    assert answer(cramped, "select count(*) = max(log_offset) v from change_log") == [{"v": True}]


def test_a_process_that_dies_is_that_querys_loss_only(queries: Queries) -> None:
    query = queries.open(Ask(sql=ENDLESS))
    threading.Timer(0.5, lambda: os.kill(query._process.process.pid, signal.SIGSEGV)).start()  # type: ignore[union-attr]
    with pytest.raises(QueryFailed, match="process ended"):
        query.start()
    assert answer(queries, "select 1 a") == [{"a": 1}]


def test_a_process_that_died_while_idle_is_not_missed(queries: Queries) -> None:
    assert answer(queries, "select 1 a") == [{"a": 1}]
    for process in list(queries.processes._idle):
        process.process.kill()
        process.process.wait()
    assert answer(queries, "select 1 a") == [{"a": 1}]


def test_more_than_so_many_queries_are_not_opened(queries: Queries) -> None:
    opened = [queries.open(Ask(sql="select 1")) for _ in range(OPEN_MAX)]
    with pytest.raises(QueriesBusy):
        queries.open(Ask(sql="select 1"))
    for query in opened:
        query.close()


# ── faults ──


@pytest.mark.parametrize(
    "sql", ["select nothing from change_log", "select 1 / 'a'", "select error('x')", "selec", "select ?", "from schema_migrations where applied_at > timestamp 'x'"]
)  # fmt: skip
def test_a_wrong_query_is_the_readers_fault_and_leaves_nothing_open(queries: Queries, sql: str) -> None:
    with pytest.raises(UsageError):
        text(queries, sql)
    assert answer(queries, "select 1 a") == [{"a": 1}]


def test_a_query_that_may_not_be_asked_leaves_nothing_open(queries: Queries) -> None:
    with pytest.raises(QueryRefused):
        text(queries, "select * from read_csv('/etc/hosts')")


def test_the_process_inherits_no_secret(queries: Queries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", "s3cret")
    queries.processes.close()
    queries.processes._closed = False
    query = queries.open(Ask(sql="select 1")).start()
    assert query._process is not None
    environment = Path(f"/proc/{query._process.process.pid}/environ")
    assert not environment.exists() or b"s3cret" not in environment.read_bytes()
    assert b"".join(query.pieces())


@pytest.mark.skipif(sys.platform != "linux", reason="the process's own bound is set on Linux alone")
def test_duckdbs_limit_is_met_before_the_processs_own(queries: Queries) -> None:
    """What the process's libraries reserve at their start must not eat the room that DuckDB may use."""
    assert answer(queries, "select count(*) n from change_log") == [{"n": 0}]
    pid = queries.processes._idle[0].process.pid
    taken_mb = int(re.findall(r"VmData:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) >> 10
    soft, _ = resource.prlimit(pid, resource.RLIMIT_DATA)
    room_mb = (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20) // MEMORY_SHARE
    assert (soft >> 20) - taken_mb >= min(MEMORY_MB_MAX, room_mb)


def test_a_producer_can_wait_for_its_own_entry(queries: Queries) -> None:
    assert queries.progress is not None
    queries.progress.positions = {"s": StreamPosition(stream="s", last_entry_id=EntryId("5-2"), last_entry_row=None)}
    logged = {entry: queries.captured("s", entry) for entry in ("5-1", "5-2", "5", "5-3", "10-0")}
    assert logged == {"5-1": True, "5-2": True, "5": True, "5-3": False, "10-0": False}
    queries.progress.positions = {"s": StreamPosition(stream="s", last_entry_id=EntryId("5-2"), last_entry_row=7)}
    assert not queries.captured("s", "5-2"), "logged in part"
    for stream, entry in (("other", "5-1"), ("s", "x"), ("s", "")):
        with pytest.raises(UsageError):
            queries.captured(stream, entry)

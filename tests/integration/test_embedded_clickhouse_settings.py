"""Settings, query ids and comments really reach the engine, each for its own query only."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from replicator.embedded.clickhouse import ClickHouse

SLOW = "select sleepEachRow(0.1) from numbers(600)"


@pytest.fixture
def connect(clickhouse_server: ClickHouse, clickhouse_database: str) -> Iterator[Callable[[], Client]]:
    """Makes clients of the test's own database."""
    clients: list[Client] = []

    def new_client() -> Client:
        client = clickhouse_connect.get_client(
            host="127.0.0.1",
            port=clickhouse_server.port,
            username=clickhouse_server.user,
            password=clickhouse_server.password,
            database=clickhouse_database,
            autogenerate_session_id=False,
        )
        clients.append(client)
        return client

    yield new_client
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[[], Client]) -> Client:
    return connect()


def rows(*numbers: int | None) -> pa.Table:
    return pa.table({"a": pa.array(numbers, pa.int64())})


@pytest.fixture
def tables(client: Client) -> None:
    """``t`` and its view's target ``u``, both with a deduplication window."""
    window = "settings non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1"
    client.command(f"create table t (a Int64) engine = MergeTree order by a {window}")
    client.command(f"create table u (a Int64) engine = MergeTree order by a {window}")
    client.command("create materialized view v to u as select a from t")


def counts(client: Client) -> tuple[int, ...]:
    return client.query("select (select count() from t), (select count() from u)").first_row


def test_a_token_drops_a_repeated_insert_also_behind_a_view(client: Client, tables: None) -> None:
    for data in (rows(1, 2), rows(1, 2), rows(3, 4)):  # the token decides, whatever the rows
        client.insert_arrow("t", data, settings={"insert_deduplication_token": "x", "async_insert": 0})
    assert counts(client) == (2, 2)
    client.insert_arrow("t", rows(1, 2), settings={"insert_deduplication_token": "y", "async_insert": 0})
    assert counts(client) == (4, 4)


def test_a_token_is_remembered_over_a_restart(client: Client, clickhouse_server: ClickHouse, tables: None) -> None:
    client.insert_arrow("t", rows(1), settings={"insert_deduplication_token": "x"})
    clickhouse_server.kill()
    clickhouse_server.start()
    client.insert_arrow("t", rows(1), settings={"insert_deduplication_token": "x"})
    assert counts(client) == (1, 1)


def test_deduplication_can_be_switched_off(client: Client, tables: None) -> None:
    for _ in range(2):
        client.insert_arrow("t", rows(1), settings={"insert_deduplication_token": "x", "deduplicate_insert": "disable"})
    assert counts(client) == (2, 2)


def test_null_as_default_is_the_clients_choice(client: Client, tables: None) -> None:
    client.insert_arrow("t", rows(None), settings={"input_format_null_as_default": 1})
    with pytest.raises(DatabaseError) as refused:
        client.insert_arrow("t", rows(None), settings={"input_format_null_as_default": 0})
    assert refused.value.code == 349
    assert counts(client) == (1, 1)


def test_missing_arrow_columns_are_the_clients_choice(client: Client) -> None:
    client.command("create table w (a Int64, b Int64) engine = MergeTree order by a")
    insert = "insert into w format Arrow"
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows(1).schema) as writer:
        writer.write_table(rows(1))
    body = sink.getvalue().to_pybytes()
    client.raw_insert("w", insert_block=body, fmt="Arrow", settings={"input_format_arrow_allow_missing_columns": 1})
    with pytest.raises(DatabaseError, match="THERE_IS_NO_COLUMN"):
        client.raw_insert("w", insert_block=body, fmt="Arrow", settings={"input_format_arrow_allow_missing_columns": 0})
    assert client.command("select count() from w") == 1, insert


def test_max_execution_time_stops_a_query(client: Client) -> None:
    with pytest.raises(DatabaseError) as stopped:
        client.query(SLOW, settings={"max_execution_time": 0.2, "max_block_size": 1})
    assert stopped.value.code == 159


def test_a_setting_lasts_for_its_own_query_only(client: Client) -> None:
    ask = "select getSetting('max_threads'), getSetting('log_comment')"
    assert client.query(ask, settings={"max_threads": 3, "log_comment": "a'b\\c"}).first_row == (3, "a'b\\c")
    assert client.query(ask).first_row[1] == ""


def test_a_constraint_or_a_failing_view_fails_the_insert(client: Client, tables: None) -> None:
    client.command("alter table t add constraint small check a < 100")
    with pytest.raises(DatabaseError) as violated:
        client.insert_arrow("t", rows(500))
    assert violated.value.code == 469
    client.command("create materialized view w to u as select throwIf(a = 50)::Int64 as a from t")
    with pytest.raises(DatabaseError) as failed:
        client.insert_arrow("t", rows(50))
    assert failed.value.code == 395


@pytest.fixture
def slow_query(connect: Callable[[], Client]) -> Iterator[tuple[str, str, list[Exception]]]:
    """A query that runs for a minute unless it is killed: its id, its comment, and where its error will be."""
    query_id, comment, errors = str(uuid.uuid4()), f"pipeline/{uuid.uuid4()}/1-2", []
    runner, watcher = connect(), connect()

    def run() -> None:
        try:
            runner.query(SLOW, settings={"query_id": query_id, "log_comment": comment, "max_block_size": 1})
        except DatabaseError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    seen = "select count() from system.processes where Settings['log_comment'] = {c:String}"
    while watcher.command(seen, parameters={"c": comment}) == 0:
        pass
    yield query_id, comment, errors
    watcher.command("kill query where Settings['log_comment'] = {c:String} sync", parameters={"c": comment})
    thread.join(10)
    assert not thread.is_alive()


def test_a_running_query_is_seen_by_its_id_and_its_comment(client: Client, slow_query) -> None:
    query_id, comment, _ = slow_query
    by_id = "select query_id, query, Settings['log_comment'] from system.processes where query_id = {i:String}"
    assert client.query(by_id, parameters={"i": query_id}).first_row[::2] == (query_id, comment)


@pytest.mark.parametrize("how", ["query_id = {i:String}", "Settings['log_comment'] = {c:String}"])
def test_a_query_is_killed_by_its_id_or_its_comment(client: Client, slow_query, how: str) -> None:
    query_id, comment, errors = slow_query
    client.command(f"KILL QUERY WHERE {how} SYNC", parameters={"i": query_id, "c": comment})
    while not errors:
        pass
    assert errors[0].code == 394


def test_a_query_id_that_is_running_is_refused(client: Client, slow_query) -> None:
    query_id, _, _ = slow_query
    with pytest.raises(DatabaseError) as refused:
        client.query("select 1", settings={"query_id": query_id})
    assert refused.value.code == 216


def test_a_slow_query_does_not_hold_up_ping_or_other_queries(client: Client, slow_query) -> None:
    assert client.ping()
    assert client.command("select 1 + 1") == 2


def test_the_query_log_knows_ids_and_comments(client: Client) -> None:
    query_id = str(uuid.uuid4())
    client.command("select 'logged'", settings={"query_id": query_id, "log_comment": "noted"})
    client.command("system flush logs")
    found = client.query(
        "select type, log_comment from system.query_log where query_id = {i:String} order by type",
        parameters={"i": query_id},
    )
    assert found.result_rows == [("QueryStart", "noted"), ("QueryFinish", "noted")]


def test_a_client_that_goes_away_does_not_cancel_its_insert(connect: Callable[[], Client]) -> None:
    client, impatient = connect(), connect()
    client.command("create table slow (a Int64) engine = MergeTree order by a")
    impatient.timeout = 0.3
    with pytest.raises(Exception, match="timed out"):
        impatient.command(
            "insert into slow select sleepEachRow(0.1) + number from numbers(10)", settings={"log_comment": "left"}
        )
    while client.command("select count() from system.processes where Settings['log_comment'] = 'left'"):
        pass
    assert client.command("select count() from slow") == 10


def test_uptime_falls_with_a_restart(client: Client, clickhouse_server: ClickHouse) -> None:
    while client.command("select uptime()") == 0:
        pass
    clickhouse_server.restart()
    assert client.command("select uptime()") == 0

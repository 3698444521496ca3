"""Health as supervisors see it: a table that stands still behind a lively loop, and what systemd is told."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import redis
from attrs import define, field
from proxy import Break, HttpProxy, Request
from replicator_process import Replicator, add, until

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey


@define
class Manager:
    """A service manager's end of NOTIFY_SOCKET."""

    path: Path
    told: list[str] = field(factory=list)
    _thread: threading.Thread = field(init=False)
    _socket: socket.socket = field(factory=lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))

    def __enter__(self) -> Self:
        self._socket.bind(str(self.path))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while message := self._socket.recv(4096):
            self.told.append(message.decode())

    def hears(self, beginning: str) -> bool:
        """Whether it has been told so by now."""
        return any(message.startswith(beginning) for message in list(self.told))


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    with Manager(tmp_path_factory.mktemp("manager") / "notify") as found:
        yield found


@pytest.fixture(scope="module")
def proxy(_clickhouse: ClickHouse) -> Iterator[HttpProxy]:
    with HttpProxy(_clickhouse.start().endpoint) as found:
        yield found


@pytest.fixture(scope="module")
def service(
    _valkey: Valkey,
    _clickhouse: ClickHouse,
    proxy: HttpProxy,
    manager: Manager,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Replicator]:
    _valkey.start()
    _clickhouse.execute("create database if not exists test_health")
    environment = {
        "REDIS_URL": _valkey.url,
        "CLICKHOUSE_ENDPOINT": proxy.url,
        "CLICKHOUSE_USER": _clickhouse.user,
        "CLICKHOUSE_PASSWORD": _clickhouse.password,
        "NOTIFY_SOCKET": str(manager.path),
        "WATCHDOG_USEC": "1000000",
    }
    with (
        redis.Redis.from_url(_valkey.url) as client,
        Replicator(
            directory=tmp_path_factory.mktemp("health"),
            environment=environment,
            database="test_health",
            sections="[serve]\nport = 0",
        ) as replicator,
    ):
        client.flushall()
        add(client, 1, 5)
        replicator.start()
        replicator.until_status(lambda r: r["sink"]["confirmed_offset"] == 5, "the first changes are delivered")
        yield replicator
    _clickhouse.start().execute("drop database test_health sync")


def test_systemd_hears_ready_what_state_and_that_it_lives(service: Replicator, manager: Manager) -> None:
    until(lambda: manager.hears("READY=1"), "ready")
    until(lambda: manager.hears("STATUS=ok"), "the state in words")
    lived = manager.told.count("WATCHDOG=1")
    until(lambda: manager.told.count("WATCHDOG=1") > lived + 1, "the watchdog hears it again")


def test_systemd_hears_of_a_reload(service: Replicator, manager: Manager) -> None:
    service.signal(signal.SIGHUP)
    until(lambda: manager.hears("RELOADING=1\nMONOTONIC_USEC="), "reloading")
    until(lambda: manager.told.count("READY=1") == 2, "ready")


def test_a_table_that_stands_still_behind_a_lively_loop_is_seen(
    service: Replicator, proxy: HttpProxy, _valkey: Valkey
) -> None:
    def held(request: Request) -> Break | None:
        return Break.HANG if request.inserts_into.endswith("change_log") else None

    proxy.rule = held
    with redis.Redis.from_url(_valkey.url) as client:
        add(client, 6, 9)

    def stalled(report: dict[str, object]) -> bool:
        (table,) = report["tables"]  # type: ignore[misc]
        (beat,) = [loop["heartbeat_seconds_ago"] for loop in report["loops"] if loop["loop"] == "deliver"]  # type: ignore[attr-defined]
        return table["stalled_seconds"] > 2 and beat < 2

    report = service.until_status(stalled, "the table stands still, and the loop beats")
    (table,) = report["tables"]
    assert (table["pending"], table["last_error"]) == (4, None), "nothing else would show it"
    assert report["streams"][0]["stalled_seconds"] == 0, "capture goes on"
    proxy.rule = lambda _: None
    proxy.release()
    service.until_status(
        lambda r: r["sink"]["confirmed_offset"] == 9 and r["tables"][0]["stalled_seconds"] == 0, "it moves again"
    )


def test_a_name_for_what_is_wrong_is_open_and_its_words_are_not(service: Replicator, _valkey: Valkey) -> None:
    with redis.Redis.from_url(_valkey.url) as client:
        client.xadd("trades", {"data": "{"})
    told = until(
        lambda: (a := service.http("GET", "/readyz", token=None)).json()["reasons"] and a, "the reason is told"
    )
    assert (told.status, told.json()) == (200, {"state": "degraded", "reasons": ["rejected_entries"]})
    report = service.status()
    assert report["reason_kinds"] == ["rejected_entries"]
    assert report["reasons"] == ["1 entry could not be logged: `replicator rejected list`"]
    assert service.http("GET", "/livez", token=None).json()["alive"] is True


def test_systemd_hears_that_it_stops(service: Replicator, manager: Manager) -> None:
    assert service.stop() == 0
    until(lambda: manager.hears("STOPPING=1"), "stopping")

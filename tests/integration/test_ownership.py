"""Who may serve a pipeline: one instance for good, one process at a time, and nobody who slept past the lease."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from attrs import define
from capture_room import CaptureRoom, wait_until
from replicator_process import Replicator

from replicator.clock import boot_seconds
from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.errors import OwnershipLost, SinkUnavailable, SourceUnavailable
from replicator.ownership import Ownership, seat_of
from replicator.source import RedisSource, SourceOptions

NEVER = threading.Event()


@define
class Clock:
    """Time that also passes when a test says so, as it does for a process that was stopped."""

    slept: float = 0.0

    def __call__(self) -> float:
        return boot_seconds() + self.slept


Claim = Callable[..., Ownership]


@pytest.fixture
def claim(redis_url: str) -> Iterator[Claim]:
    sources = []

    def make(instance: str = "one", seat: str = "here", seconds: float = 1.0, **more: object) -> Ownership:
        sources.append(RedisSource(SourceOptions(url=redis_url, timeout_seconds=2)))
        return Ownership(
            store=sources[-1], pipeline="main", instance_id=instance, seat=seat, lease_seconds=seconds, **more
        )

    yield make
    for source in sources:
        source.close()


def test_an_owner_may_log_and_send(claim: Claim) -> None:
    ownership = claim()
    ownership.acquire(NEVER)
    ownership.check()
    ownership.check_sending()
    assert ownership.held


def test_another_instance_is_refused_by_name_however_long_it_waits(claim: Claim) -> None:
    first = claim("one")
    first.acquire(NEVER)
    with pytest.raises(OwnershipLost, match=f"belongs to instance one .now process {os.getpid()} on"):
        claim("two", seat="there").acquire(NEVER)
    first.release()
    with pytest.raises(OwnershipLost, match=r"belongs to instance one .not running now"):
        claim("two").acquire(NEVER)


def test_an_empty_file_under_an_owned_pipeline_names_restore(claim: Claim) -> None:
    claim("one").acquire(NEVER)
    with pytest.raises(OwnershipLost, match=r"this DuckDB file is empty.*replicator restore"):
        claim("two", file_empty=True).acquire(NEVER)


def test_a_second_process_on_a_copied_file_is_refused_while_the_first_lives(claim: Claim) -> None:
    first, stop = claim(seat="original"), threading.Event()
    first.acquire(NEVER)
    renewing = threading.Thread(target=first.run, args=(stop,))
    renewing.start()
    try:
        with pytest.raises(OwnershipLost, match="is being served by process"):
            claim(seat="copy").acquire(NEVER)
        first.check()
    finally:
        stop.set()
        first.wake()
        renewing.join()


def test_a_dead_owners_lease_expires(claim: Claim) -> None:
    claim(seat="another machine").acquire(NEVER)
    began, heir = time.monotonic(), claim(seat="here")
    heir.acquire(NEVER)
    assert heir.held and time.monotonic() - began > 0.5


def test_a_restart_on_the_same_file_need_not_wait(claim: Claim) -> None:
    claim(seconds=60).acquire(NEVER)
    began, heir = time.monotonic(), claim(seconds=60)
    heir.acquire(NEVER)
    assert heir.held and time.monotonic() - began < 30


def test_an_orderly_end_hands_the_lease_on_at_once(claim: Claim) -> None:
    first = claim(seat="there", seconds=60)
    first.acquire(NEVER)
    first.release()
    with pytest.raises(SourceUnavailable):
        first.check()
    heir = claim(seat="here", seconds=60)
    heir.acquire(NEVER)
    assert heir.held


def test_who_slept_logs_nothing_and_sends_only_after_redis_has_confirmed(claim: Claim) -> None:
    clock = Clock()
    sleeper = claim(seconds=60, clock=clock)
    sleeper.acquire(NEVER)
    clock.slept = 100
    with pytest.raises(SourceUnavailable, match="has run out"):
        sleeper.check()
    sleeper.check_sending()  # nobody took over: Redis confirms it
    sleeper.check()


def test_who_slept_while_another_took_over_does_nothing_any_more(claim: Claim, redis_url: str) -> None:
    clock, stop = Clock(), threading.Event()
    sleeper = claim(seconds=60, clock=clock)
    sleeper.acquire(NEVER)
    with redis.Redis.from_url(redis_url) as client:
        client.delete(sleeper.lease_key)  # as it expires meanwhile
    clock.slept = 100
    heir = claim(seat="copy", seconds=1)
    heir.acquire(NEVER)
    with pytest.raises(SinkUnavailable, match="is held by process"):
        sleeper.check_sending()
    with pytest.raises(SourceUnavailable):
        sleeper.check()
    renewing = threading.Thread(target=heir.run, args=(stop,))
    renewing.start()
    try:
        with pytest.raises(OwnershipLost, match="is being served by"):
            sleeper.run(NEVER)
        for check in (sleeper.check, sleeper.check_sending):
            with pytest.raises(OwnershipLost):
                check()
    finally:
        stop.set()
        heir.wake()
        renewing.join()


def test_without_redis_an_owner_that_stays_awake_goes_on_sending_but_not_logging(
    claim: Claim, redis_server: Valkey
) -> None:
    clock = Clock()
    ownership = claim(seconds=60, clock=clock)
    ownership.acquire(NEVER)
    redis_server.kill()
    for _ in range(8):
        clock.slept += 10
        with pytest.raises(SourceUnavailable):
            ownership._attempt()  # what `run` does every twelve seconds
    ownership.check_sending()
    with pytest.raises(SourceUnavailable):
        ownership.check()
    clock.slept += 100
    with pytest.raises(SinkUnavailable, match="does not say who owns"):
        ownership.check_sending()


def test_a_flushed_redis_is_claimed_again(claim: Claim, redis_url: str) -> None:
    ownership = claim()
    ownership.acquire(NEVER)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        ownership.acquire(NEVER)
        assert client.get(ownership.owner_key) == b"one" and ownership.held


def test_a_copy_has_another_seat_and_a_renamed_file_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    seat = seat_of(tmp_path / "a")
    shutil.copy(tmp_path / "a", tmp_path / "b")
    assert seat_of(tmp_path / "b") != seat
    (tmp_path / "a").rename(tmp_path / "c")
    assert seat_of(tmp_path / "c") == seat


SERVE = """
import sys, threading
from pathlib import Path
from capture_room import CaptureRoom
room = CaptureRoom(path=Path(sys.argv[1]), url=sys.argv[2], lease_seconds=float(sys.argv[3])).start()
print("serving", flush=True)
try:
    room.wait_owner_lost()
finally:
    room.stop()
print("lost", flush=True)
"""


def test_a_stopped_process_that_wakes_up_logs_and_publishes_nothing(redis_url: str, tmp_path: Path) -> None:
    live, copy = tmp_path / "live.duckdb", tmp_path / "copy.duckdb"
    CaptureRoom(path=live, url=redis_url).start().stop()
    shutil.copy(live, copy)
    command = [sys.executable, "-c", SERVE, str(live), redis_url, "1"]
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=where) as sleeper,
        redis.Redis.from_url(redis_url) as client,
    ):
        assert sleeper.stdout is not None
        wait_until(lambda: b"serving" in sleeper.stdout.readline(), "the first process")
        wait_until(lambda: client.get("replicator:main:lease"), "its lease")
        os.kill(sleeper.pid, signal.SIGSTOP)
        room = CaptureRoom(path=copy, url=redis_url, lease_seconds=1).start()
        payloads = [f'{{"n":{n}}}' for n in range(50)]
        for payload in payloads:
            client.xadd("trades", {"data": payload, "key": "k"})
        room.wait_logged(50)
        room.wait_settled()
        os.kill(sleeper.pid, signal.SIGCONT)
        output, _ = sleeper.communicate(timeout=20)
        assert b"lost" in output.splitlines()[-1] and room.payloads == payloads and room.gaps == []
        assert client.get("replicator:main:head") == b"1:50"
        room.stop()
    woken = CaptureRoom(path=live, url=redis_url, streams=()).start()
    assert woken.payloads == []
    woken.stop()


def test_a_second_service_refuses_to_start_with_the_owners_name(
    redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str, tmp_path: Path
) -> None:
    server = clickhouse_server
    environment = {
        "REDIS_URL": redis_url,
        "CLICKHOUSE_ENDPOINT": server.endpoint,
        "CLICKHOUSE_USER": server.user,
        "CLICKHOUSE_PASSWORD": server.password,
    }
    port = "[serve]\nport = 0\n"
    where = {"environment": environment, "sections": port, "database": clickhouse_database}
    with (
        Replicator(directory=tmp_path / "one", **where) as first,
        Replicator(directory=tmp_path / "two", **where) as second,
        redis.Redis.from_url(redis_url) as client,
    ):
        first.start()
        owner = wait_until(lambda: client.get("replicator:main:owner"), "the owner").decode()
        second.start(ready=False)
        assert second.wait() != 0
        assert first.process is not None
        last = " ".join(second.log_text.strip().splitlines()[-3:])
        assert f"belongs to instance {owner} (now process {first.process.pid} on" in last
        assert "this DuckDB file is empty" in last and "replicator restore" in last
        assert first.stop() == 0

"""The loop of deliver in its own thread: what it costs when idle, and that nothing that hangs holds it up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract.fakes import LEDGER, FakeClickHouse, InlinePool, wait_until
from deliver_room import all_in, delivered, once
from log_room import LogRoom

from replicator.deliver_pool import WorkerPool
from replicator.errors import SinkMisshapen, SinkRejected
from replicator.retry import Ladder

LOOP = "the loop under test"

# ── the loop itself ──


@pytest.fixture
def running(tmp_path: Path, server: FakeClickHouse) -> Iterator[LogRoom]:
    """The loop in a thread of its own, with real workers."""
    room = LogRoom(path=tmp_path / "log.duckdb", sink=server, pool=WorkerPool(4))
    thread = threading.Thread(target=room.deliver.run, name=LOOP, daemon=True)
    thread.start()
    yield room
    room.stop.set()
    thread.join(12)
    assert not thread.is_alive()
    room.database.close()


def test_an_idle_loop_takes_almost_no_time(running: LogRoom, server: FakeClickHouse) -> None:
    running.append(10)
    wait_until(lambda: running.deliver.checkpoint == 10)
    assert cpu_seconds_of_idling() < 0.05


@pytest.mark.parametrize("why", ["paused", "stopped", "outage"])
def test_a_loop_that_may_not_send_takes_almost_no_time(running: LogRoom, server: FakeClickHouse, why: str) -> None:
    running.ladder = Ladder(waits_seconds=[0.01, 30], retries_max=2)
    if why == "paused":
        running.paused.add("change_log")
    elif why == "stopped":
        server.meet = lambda table, send: SinkMisshapen("no such table", code=60)
    else:
        server.kill()
    running.append(250)
    wait_until(lambda: running.deliver.scanned == 250)
    time.sleep(0.3)  # the first tries are over
    assert cpu_seconds_of_idling() < 0.05


def cpu_seconds_of_idling() -> float:
    started = time.process_time()
    time.sleep(1.0)  # the time that is measured
    return time.process_time() - started


def test_a_hanging_insert_delays_no_other_lane_and_no_stop(running: LogRoom, server: FakeClickHouse) -> None:
    hanging = threading.Event()

    def meet(table: str, send: Any) -> Any:
        if table == "change_log":
            hanging.wait(60)
        return None

    server.meet = meet
    running.append(10)
    running.append(10, table="orders")
    wait_until(lambda: len(server.physical("orders")) == 10)
    started = time.monotonic()
    running.stop.set()
    wait_until(lambda: not any(thread.name == LOOP for thread in threading.enumerate()))
    assert time.monotonic() - started < 10
    hanging.set()


def test_a_loop_that_crashed_goes_on_from_what_the_file_says(room: LogRoom, server: FakeClickHouse) -> None:
    room.append(150)
    broken = [True]

    def meet(table: str, send: Any) -> Any:
        if table == LEDGER and broken[0]:
            broken[0] = False
            raise RuntimeError("a bug of ours")
        return None

    server.meet = meet
    with pytest.raises(RuntimeError):
        room.until(delivered(room, server))
    room.deliver.load()
    room.until(delivered(room, server))
    once(room, server)


def test_a_bug_in_one_lane_stops_that_lane_only(room: LogRoom, server: FakeClickHouse) -> None:
    broken = [True]

    def meet(table: str, send: Any) -> Any:
        if table == "change_log" and broken[0]:
            raise KeyError("a bug of ours")
        return None

    server.meet = meet
    room.append(10)
    room.append(10, table="orders")
    room.until(lambda: all_in(room, server, "orders") and room.deliver.lanes["change_log"].stopped_reason)
    broken[0] = False
    room.until(delivered(room, server))
    once(room, server)


def test_a_rejection_by_the_client_itself_is_bisected_too(room: LogRoom, server: FakeClickHouse) -> None:
    def meet(table: str, send: Any) -> Any:
        bad = send is not None and send.offsets.first <= 5 <= send.offsets.last
        return SinkRejected("ValueError: no", code="ValueError") if bad else None

    server.meet = meet
    room.append(20)
    room.until(delivered(room, server))
    assert [row[1] for row in room.failed()] == [5]


def test_one_batch_is_frozen_ahead_and_no_more_and_both_survive_a_restart(
    running: LogRoom, server: FakeClickHouse
) -> None:
    hanging = threading.Event()

    def meet(table: str, send: Any) -> Any:
        hanging.wait(60)

    server.meet = meet
    running.append(450)
    undelivered = "select count(*) from sync_batches where delivered_at is null"
    wait_until(lambda: running.rows(undelivered) == [(2,)])
    running.append(200)
    wait_until(lambda: running.deliver.scanned == 650)
    assert running.rows(undelivered) == [(2,)]
    again = LogRoom(path=running.path, sink=server, pool=InlinePool(), shares=running.database)
    assert [batch.offsets.first for batch in again.deliver.lanes["change_log"].frozen] == [1, 100]
    assert all(trial.ask_first for trial in again.deliver.lanes["change_log"].trials.values())
    hanging.set()
    wait_until(lambda: running.deliver.checkpoint == 650)
    once(running, server)

"""Deliver over a ClickHouse in memory: exactly once, promise 3 at every turn, whatever breaks or restarts."""

from __future__ import annotations

import threading

import pytest
from contract.fakes import LEDGER, FakeClickHouse, Fault
from deliver_room import Script, all_in, delivered, once
from log_room import LogRoom, lanes

from replicator.model import BatchLimits, OffsetRange
from replicator.retry import Ladder

# ── the plain way ──


def test_everything_is_delivered_once_in_batches_within_the_limit(room: LogRoom, server: FakeClickHouse) -> None:
    for rows in (1, 250, 7, 99):
        room.append(rows)
    room.until(delivered(room, server))
    once(room, server)
    sizes = [int(str(size)) for (size,) in room.rows("select row_count from sync_batches order by first_offset")]
    assert max(sizes) <= 100
    assert sum(sizes) == 357


def test_batches_of_a_lane_are_contiguous_across_other_lanes_offsets(room: LogRoom, server: FakeClickHouse) -> None:
    for _ in range(5):
        room.append(30)
        room.append(3, table="orders")
    room.until(delivered(room, server))
    once(room, server)
    once(room, server, "orders")


def test_a_batch_waits_for_its_age_or_its_rows(room: LogRoom, server: FakeClickHouse) -> None:
    room.limits = BatchLimits(rows_max=100, age_seconds_max=3600)
    room.append(60)
    room.step(5)
    assert server.inserts == 0
    room.append(60)
    room.until(lambda: server.inserts == 1)
    room.deliver.flush.set()
    room.until(delivered(room, server))
    once(room, server)


def test_a_small_backlog_is_not_cut_before_it_is_due(room: LogRoom, server: FakeClickHouse) -> None:
    room.limits = BatchLimits(rows_max=100, age_seconds_max=3600)
    for rows in (20, 10, 20, 10, 20):
        room.append(rows)
        room.step(3)
    assert server.inserts == 0


def test_a_paused_lane_sends_nothing_and_delays_no_other(room: LogRoom, server: FakeClickHouse) -> None:
    room.paused.add("change_log")
    room.append(10)
    room.append(10, table="orders")
    room.until(lambda: all_in(room, server, "orders"))
    assert server.physical("change_log") == []
    room.paused.clear()
    room.until(delivered(room, server))
    once(room, server)


@pytest.mark.parametrize("read_rows", [1, 2048])
def test_large_payloads_are_delivered_in_batches_that_fit_into_memory(
    room: LogRoom, server: FakeClickHouse, monkeypatch: pytest.MonkeyPatch, read_rows: int
) -> None:
    monkeypatch.setattr("replicator.deliver.BATCH_BYTES_MAX", 100_000)
    monkeypatch.setattr("replicator.deliver_work.READ_ROWS", read_rows)
    room.limits = BatchLimits(rows_max=1000, age_seconds_max=0)
    room.append(40, payload='{"a":"%s"}' % ("x" * 20_000))
    room.append(400)
    room.until(delivered(room, server))
    once(room, server)
    assert max(part.table.nbytes for part in server.parts["change_log"]) < 110_000


def test_a_range_is_never_longer_than_the_rows_that_were_read_of_it(
    room: LogRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read in pieces is smaller once it is one: a bound between the two sizes cuts as well."""
    monkeypatch.setattr("replicator.deliver_work.READ_ROWS", 1)
    room.append(4)
    whole, worker, lane = OffsetRange(first=1, last=4), room.deliver.worker, lanes("change_log", 0)
    for bytes_max in range(1, worker.prepare(lane, whole, 0).table.nbytes + 300, 5):
        prepared = worker.prepare(lane, whole, 0, bytes_max)
        assert prepared.table["log_offset"].to_pylist() == list(range(1, prepared.offsets.last + 1)), bytes_max


def test_a_row_larger_than_a_batch_may_be_goes_alone(
    room: LogRoom, server: FakeClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.deliver.BATCH_BYTES_MAX", 10_000)
    room.append(5, payload='{"a":"%s"}' % ("x" * 20_000))
    room.until(delivered(room, server))
    once(room, server)
    assert [part.table.num_rows for part in server.parts["change_log"]] == [1] * 5


# ── doubt ──


@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER, Fault.STILL_RUNS])
def test_a_broken_connection_neither_loses_nor_doubles(room: LogRoom, server: FakeClickHouse, fault: Fault) -> None:
    server.meet = Script({"change_log": [fault]})
    room.append(10)
    room.step(3)
    finishing = threading.Timer(0.3, server.finish)
    finishing.start()
    room.until(delivered(room, server))
    finishing.join()
    once(room, server)


@pytest.mark.parametrize("fault", [Fault.DIES_AFTER_TOKEN, Fault.DIES_AFTER_ROWS])
def test_a_server_that_died_in_an_insert_is_asked_what_it_has(
    room: LogRoom, server: FakeClickHouse, fault: Fault
) -> None:
    server.meet = Script({"change_log": [fault]})
    room.append(10)
    room.step(3)
    assert not server.up
    server.start()
    room.until(delivered(room, server))
    once(room, server)


def test_a_batch_in_flight_at_a_kill_is_asked_about_and_not_doubled(room: LogRoom, server: FakeClickHouse) -> None:
    room.append(10)
    server.meet = Script({LEDGER: [Fault.REFUSED] * 1000})
    room.until(lambda: all_in(room, server))
    room.reopen()
    server.meet = Script({})
    room.until(delivered(room, server))
    once(room, server)
    assert server.inserts == 1


def test_an_insert_that_still_runs_after_a_restart_is_waited_for(room: LogRoom, server: FakeClickHouse) -> None:
    server.meet = Script({"change_log": [Fault.STILL_RUNS]})
    room.append(10)
    room.step(3)
    room.reopen()
    finishing = threading.Timer(0.4, server.finish)
    finishing.start()
    room.until(delivered(room, server))
    finishing.join()
    server.finish()
    once(room, server)


def test_a_frozen_batch_that_was_never_sent_is_sent_after_a_restart(room: LogRoom, server: FakeClickHouse) -> None:
    server.meet = Script({"change_log": [Fault.REFUSED] * 1000})
    room.append(10)
    room.step(3)
    room.reopen()
    server.meet = Script({})
    room.until(delivered(room, server))
    once(room, server)


def test_doubt_about_one_batch_is_not_cleared_by_the_success_of_another(room: LogRoom, server: FakeClickHouse) -> None:
    """A redrive goes through while the frozen batch is in doubt; the server died between token and rows."""
    room.ladder = Ladder(waits_seconds=[0.01], retries_max=0)
    server.meet = Script({"change_log": [Fault.OVERLOADED]})
    room.append(5)
    room.until(room.failed)
    room.ladder = Ladder(waits_seconds=[0.05], retries_max=50)
    server.meet = Script({})
    room.until(lambda: room.failed()[0][4] == "resolved")
    failed = room.ledger.open_failures(room.database.session())
    assert failed == []
    server.meet = Script({"change_log": [Fault.DIES_AFTER_TOKEN]})
    room.append(5)
    room.until(lambda: not server.up)
    server.start()
    again = room.rows("update failed_syncs set status = 'open' returning id")
    assert again
    room.deliver.add_redrive(room.ledger.open_failures(room.database.session())[0], requested_by="operator")
    room.until(delivered(room, server))
    once(room, server)


# ── restarts ──


def test_changes_of_a_lane_met_late_are_not_forgotten_by_a_restart(room: LogRoom, server: FakeClickHouse) -> None:
    room.append(100)
    room.until(delivered(room, server))
    server.meet = lambda table, send: Fault.REFUSED if table == "orders" else None
    room.ladder = Ladder(waits_seconds=[60], retries_max=9)
    room.limits = BatchLimits(rows_max=100, age_seconds_max=0.01)
    room.paused.add("orders")
    room.append(5, table="orders")
    room.append(100)
    room.until(lambda: all_in(room, server))
    room.until(lambda: room.checkpoints().get("change_log", 0) >= 205)
    room.reopen()
    server.meet = Script({})
    room.paused.clear()
    room.until(delivered(room, server))
    once(room, server, "orders")


def test_the_undeclared_lane_is_not_forgotten_by_a_restart(room: LogRoom, server: FakeClickHouse) -> None:
    room.paused.add("change_log")
    room.append(5)
    room.append(100, table="orders")
    room.until(lambda: room.checkpoints().get("orders", 0) >= 105)
    room.reopen()
    room.paused.clear()
    room.until(delivered(room, server))
    once(room, server)
    once(room, server, "orders")


def test_restarts_at_every_turn_lose_and_double_nothing(room: LogRoom, server: FakeClickHouse) -> None:
    for round_ in range(16):
        room.append(7)
        room.append(3, table="orders")
        for _ in range(round_ % 4 + 1):
            room.step()
        room.check_promise_three(server.physical)
        room.reopen()
    room.until(delivered(room, server))
    once(room, server)
    once(room, server, "orders")


def test_an_idle_lane_stands_at_the_head(room: LogRoom, server: FakeClickHouse) -> None:
    room.append(10, table="orders")
    room.until(delivered(room, server))
    room.append(50)
    room.until(delivered(room, server))
    assert room.deliver.checkpoint == 60
    assert room.checkpoints()["orders"] >= 10

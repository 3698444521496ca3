"""Outages and poison: what is parked, what is redriven, and that no lane is in another's way."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from contract.fakes import LEDGER, FakeClickHouse, Fault
from deliver_room import Script, all_in, delivered, once
from log_room import LogRoom

from replicator.deliver_lane import Circuit
from replicator.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
    SinkMisshapen,
    SinkRefused,
    SinkRejected,
    SinkUnavailable,
)
from replicator.lanes import Lane
from replicator.model import BatchLimits
from replicator.retry import SENTENCES, VIEW_AT_FAULT, Ladder

# ── outages ──


def test_an_outage_shorter_than_the_ladder_parks_nothing(room: LogRoom, server: FakeClickHouse) -> None:
    server.meet = Script({"change_log": [Fault.REFUSED, Fault.OVERLOADED, Fault.REFUSED]})
    room.append(250)
    room.until(delivered(room, server))
    once(room, server)
    assert room.failed() == []


def test_a_batchs_record_says_at_which_attempt_it_came_in(room: LogRoom, server: FakeClickHouse) -> None:
    server.meet = Script({"change_log": [Fault.REFUSED, Fault.OVERLOADED]})
    room.append(50)
    room.until(delivered(room, server))
    room.append(50)
    room.until(delivered(room, server))
    assert room.deliver.session.rows("select attempt from sync_batches order by first_offset") == [(3,), (1,)]


def test_an_outage_longer_than_the_ladder_parks_one_batch_per_lane_and_redrives_it_first(
    room: LogRoom, server: FakeClickHouse
) -> None:
    server.kill()
    room.append(350)
    room.append(20, table="orders")
    room.until(lambda: len(room.failed()) == 2)
    for _ in range(50):
        room.step()
        room.deliver.rest()
        room.check_promise_three(server.physical)
    assert [row[0] for row in room.failed()] == ["change_log", "orders"]
    assert {state.circuit for state in room.deliver.lanes.values()} == {Circuit.OPEN}
    server.start()
    room.until(delivered(room, server))
    once(room, server)
    once(room, server, "orders")
    assert {row[4] for row in room.failed()} == {"resolved"}
    sends = [send for _, send in server.physical("change_log")]
    assert server.parts["change_log"][0].range.first == 1, "the parked range goes first"
    assert len(set(sends)) == len(server.parts["change_log"])


def test_a_restart_during_an_outage_parks_no_second_batch(room: LogRoom, server: FakeClickHouse) -> None:
    server.kill()
    room.append(350)
    room.until(room.failed)
    room.reopen()
    assert room.deliver.lanes["change_log"].circuit is Circuit.OPEN
    for _ in range(50):
        room.step()
        room.deliver.rest()
    assert len(room.failed()) == 1
    server.start()
    room.until(delivered(room, server))
    once(room, server)


@pytest.mark.parametrize("fault", [Fault.LOST_AFTER, Fault.LOST_BEFORE])
def test_a_parked_batch_in_doubt_is_asked_about_before_it_is_redriven(
    room: LogRoom, server: FakeClickHouse, fault: Fault
) -> None:
    room.ladder = Ladder(waits_seconds=[0.01], retries_max=0)
    server.meet = Script({"change_log": [fault]})
    room.append(10)
    room.until(room.failed)
    room.until(delivered(room, server))
    room.until(lambda: room.failed()[0][4] == "resolved")
    once(room, server)


def test_a_redrive_killed_before_it_was_recorded_is_not_doubled(room: LogRoom, server: FakeClickHouse) -> None:
    room.ladder = Ladder(waits_seconds=[0.01], retries_max=0)
    server.kill()
    room.append(10)
    room.until(room.failed)
    server.start()
    server.meet = Script({LEDGER: [Fault.REFUSED] * 1000})
    room.until(lambda: all_in(room, server))
    room.reopen()
    server.meet = Script({})
    room.until(lambda: room.failed()[0][4] == "resolved")
    room.until(delivered(room, server))
    once(room, server)


def test_one_lanes_outage_does_not_delay_another(room: LogRoom, server: FakeClickHouse) -> None:
    server.meet = lambda table, send: Fault.OVERLOADED if table == "change_log" else None
    for _ in range(4):
        room.append(50)
        room.append(50, table="orders")
        room.until(lambda: all_in(room, server, "orders"))
    room.until(lambda: room.checkpoints().get("orders", 0) >= max(room.offsets_of("orders")))
    assert server.physical("change_log") == []


def test_the_ledger_is_written_before_a_checkpoint_passes(room: LogRoom, server: FakeClickHouse) -> None:
    server.meet = lambda table, send: Fault.LOST_BEFORE if table == LEDGER else None
    room.append(10)
    room.append(10, table="orders")
    room.until(lambda: all_in(room, server) and all_in(room, server, "orders"))
    room.append(10, table="quotes")  # its freezing is a transaction in which checkpoints could move
    room.until(lambda: all_in(room, server, "quotes"))
    for _ in range(20):
        room.step()
        room.deliver.rest()
    assert set(room.checkpoints().values()) <= {0, 20}
    assert room.checkpoints()["change_log"] == room.checkpoints()["orders"] == 0
    assert room.deliver.checkpoint < 10
    server.meet = lambda table, send: None
    room.until(delivered(room, server))
    once(room, server)


def test_the_files_own_trouble_is_no_outage_of_the_sink(
    room: LogRoom, server: FakeClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.append(50)
    reads = [0]
    read = type(room.deliver.worker)._read

    def out_of_memory(*args: Any) -> Any:
        reads[0] += 1
        if reads[0] % 3:
            raise DatabaseUnavailable("DuckDB ran out of memory", code="conflict")
        return read(*args)

    monkeypatch.setattr(type(room.deliver.worker), "_read", out_of_memory)
    server.meet = Script({"change_log": [Fault.OVERLOADED] * 2})
    room.until(delivered(room, server))
    once(room, server)
    assert room.failed() == []


def test_a_lane_whose_tables_shape_is_wrong_stops_alone_and_goes_on_when_it_is_mended(
    room: LogRoom, server: FakeClickHouse
) -> None:
    server.tables = ("orders",)
    room.append(10)
    room.append(10, table="orders")
    room.until(lambda: all_in(room, server, "orders") and room.deliver.lanes["change_log"].stopped_reason)
    why = room.deliver.lanes["change_log"].stopped_reason
    assert why.startswith(SENTENCES[SinkMisshapen]) and "does not exist" in why
    assert room.deliver.lanes["change_log"].last_error == why
    assert room.failed() == []
    server.tables = None
    room.until(delivered(room, server))
    once(room, server)
    assert room.deliver.lanes["change_log"].stopped_reason == ""


def test_a_refused_login_parks_nothing(room: LogRoom, server: FakeClickHouse) -> None:
    refusal = SinkRefused("wrong password", code=516)
    server.meet = Script({"change_log": [refusal] * 8})
    room.append(10)
    room.until(delivered(room, server))
    assert room.failed() == []
    once(room, server)


# ── poison ──


def test_one_bad_row_is_parked_and_the_others_are_delivered_in_few_inserts(
    room: LogRoom, server: FakeClickHouse
) -> None:
    room.limits = BatchLimits(rows_max=4096, age_seconds_max=0)
    room.append(1024)
    server.refuses = lambda offset: offset == 700
    room.until(delivered(room, server))
    assert [offset for offset, _ in server.physical("change_log")] == [o for o in range(1, 1025) if o != 700]
    assert room.failed() == [("change_log", 700, 700, "rejected", "open", "469")]
    assert room.rows("select log_offset, payload from parked_changes") == [(700, '{"n":700}')]
    assert server.inserts <= 1 + 2 * 10
    assert sorted(server.ledger)[0][2] == 1
    assert {row.status for row in server.ledger.values()} == {"delivered", "parked"}


def test_the_ledgers_union_stays_whole_over_parked_rows(room: LogRoom, server: FakeClickHouse) -> None:
    server.refuses = lambda offset: offset % 10 == 3
    room.append(40)
    room.until(delivered(room, server))
    ranges = sorted((r.first_offset, r.last_offset) for r in server.ledger.values())
    assert ranges[0][0] == 1
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(ranges))
    assert len(room.failed()) == 4
    assert len(server.physical("change_log")) == 36


def test_a_kill_between_the_children_of_a_bisected_batch_loses_and_doubles_nothing(
    room: LogRoom, server: FakeClickHouse
) -> None:
    server.refuses = lambda offset: offset in (5, 6, 15)
    room.append(16)
    for turns in range(8):
        room.step(turns % 5 + 2)
        room.check_promise_three(server.physical)
        room.reopen()
    room.until(delivered(room, server))
    assert [offset for offset, _ in server.physical("change_log")] == [
        offset for offset in range(1, 17) if offset not in (5, 6, 15)
    ]
    assert [row[1] for row in room.failed()] == [5, 6, 15]


def test_a_view_that_throws_stops_the_table_and_parks_nothing(room: LogRoom, server: FakeClickHouse) -> None:
    server.view_throws = True
    room.append(50)
    room.until(lambda: room.deliver.lanes["change_log"].stopped_reason)
    assert room.deliver.lanes["change_log"].stopped_reason.startswith(f"{VIEW_AT_FAULT}: Code: 395")
    assert room.failed() == []
    server.view_throws = False
    room.until(delivered(room, server))
    once(room, server)


def test_an_unlisted_code_is_an_outage_first_and_a_rejection_when_it_repeats(
    room: LogRoom, server: FakeClickHouse
) -> None:

    room.ladder = Ladder(waits_seconds=[0.001], retries_max=8)
    bad = {31}

    def meet(table: str, send: Any) -> Any:
        poisoned = send is not None and any(send.offsets.first <= offset <= send.offsets.last for offset in bad)
        return SinkUnavailable("Code: 4242. what is this", code=4242) if poisoned else None

    server.meet = meet
    room.append(64)
    room.until(delivered(room, server))
    assert [row[1:4] for row in room.failed()] == [(31, 31, "rejected")]
    assert len(server.physical("change_log")) == 63


@pytest.mark.parametrize("code", [159, 53, 4242])
def test_what_asking_meets_says_nothing_of_the_rows(room: LogRoom, server: FakeClickHouse, code: int) -> None:
    kind = SinkRejected if code == 53 else SinkUnavailable
    room.ladder = Ladder(waits_seconds=[0.001], retries_max=6)
    server.meet = Script({"change_log": [OutcomeUnknown("reset")]})
    server.ask_fails = kind(f"Code: {code}. of a query, not of an insert", code=code)
    room.append(10)
    room.until(room.failed)
    assert [row[1:5] for row in room.failed()] == [(1, 10, "outage", "open")]
    server.ask_fails = None
    room.until(delivered(room, server))
    room.until(lambda: {row[4] for row in room.failed()} == {"resolved"})
    once(room, server)


def test_a_bisection_that_cannot_ask_waits(room: LogRoom, server: FakeClickHouse) -> None:
    room.ladder = Ladder(waits_seconds=[0.01], retries_max=100)
    server.refuses = lambda offset: offset == 7
    server.ask_fails = SinkUnavailable("Code: 4242. what is this", code=4242)
    room.append(10)
    before = server.inserts
    for _ in range(20):
        room.step()
    assert server.inserts - before < 10, "tried again without waiting"
    server.ask_fails = None
    room.until(delivered(room, server))
    assert [row[1:4] for row in room.failed()] == [(7, 7, "rejected")]


def test_an_outage_in_the_middle_of_a_bisection_is_only_waited_for(room: LogRoom, server: FakeClickHouse) -> None:
    room.ladder = Ladder(waits_seconds=[0.01], retries_max=100)
    server.refuses = lambda offset: offset == 60
    room.append(100)
    for _ in range(30):
        room.step()
        server.kill() if server.up else server.start()
        room.check_promise_three(server.physical)
    server.start()
    room.until(delivered(room, server))
    assert [row[1:4] for row in room.failed()] == [(60, 60, "rejected")]
    assert [offset for offset, _ in server.physical("change_log")] == [o for o in range(1, 101) if o != 60]


def test_a_bad_row_within_a_batch_parked_by_an_outage_is_found_when_it_is_redriven(
    room: LogRoom, server: FakeClickHouse
) -> None:
    server.refuses = lambda offset: offset == 42
    server.kill()
    room.append(100)
    room.until(room.failed)
    server.start()
    room.until(lambda: len(server.physical("change_log")) == 99)
    room.until(delivered(room, server))
    room.until(lambda: {row[4] for row in room.failed() if row[1] != 42} <= {"resolved"})
    open_rows = [row for row in room.failed() if row[4] == "open"]
    assert [row[1:4] for row in open_rows] == [(42, 42, "rejected")]
    assert room.rows("select log_offset from parked_changes") == [(42,)]
    assert room.deliver.lanes["change_log"].circuit is Circuit.CLOSED


def test_a_table_that_is_gone_is_made_anew_for_a_batch_that_was_sent_before(
    room: LogRoom, server: FakeClickHouse
) -> None:
    """What became of the earlier send is asked first, and a table that is gone answers: nothing is held."""

    def make(lane: Lane) -> None:
        server.tables = None

    room.append(10)
    server.meet = Script({"change_log": [Fault.LOST_AFTER]})
    room.until(lambda: server.inserts == 1)
    server.parts.clear()
    server.tokens.clear()
    server.tables = ()
    room.deliver.worker.ensure = make
    room.until(delivered(room, server))
    once(room, server)

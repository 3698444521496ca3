"""How many rows of one batch may be parked before its table stops: counted over all its parts, whatever comes between."""

from __future__ import annotations

import pytest
from contract.fakes import FakeClickHouse
from deliver_room import delivered
from log_room import LogRoom


def test_a_table_stops_when_too_much_of_one_batch_is_refused(
    room: LogRoom, server: FakeClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.deliver_failure.PARKED_ROWS_MAX", 5)
    server.refuses = lambda offset: True
    room.append(50)
    room.until(lambda: room.deliver.lanes["change_log"].stopped_reason)
    assert len(room.failed()) == 5
    why = room.deliver.lanes["change_log"].stopped_reason
    assert why.startswith("5 rows of one batch"), "not that they are parked and the others go on"
    server.refuses = lambda offset: False
    room.until(delivered(room, server))
    assert len(server.physical("change_log")) == 45
    assert len(server.physical("change_log")) == 45


def test_the_bound_on_parked_rows_is_per_batch(
    room: LogRoom, server: FakeClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.deliver_failure.PARKED_ROWS_MAX", 3)
    server.refuses = lambda offset: offset % 4 == 0
    for _ in range(3):
        room.append(8)
        room.until(delivered(room, server))
    assert len(room.failed()) == 6


def test_the_bound_on_parked_rows_outlives_a_restart(
    room: LogRoom, server: FakeClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.deliver_failure.PARKED_ROWS_MAX", 5)
    server.refuses = lambda offset: True
    room.append(50)
    for _ in range(3):
        room.until(lambda: room.deliver.lanes["change_log"].stopped_reason)
        room.reopen()
    room.until(lambda: room.deliver.lanes["change_log"].stopped_reason)
    assert len(room.failed()) == 5


def test_the_bound_holds_for_what_an_outage_had_parked(
    room: LogRoom, server: FakeClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.deliver_failure.PARKED_ROWS_MAX", 5)
    server.kill()
    room.append(50)
    room.until(room.failed)
    server.refuses = lambda offset: True
    server.start()
    room.until(lambda: room.deliver.lanes["change_log"].stopped_reason)
    rejected = [row for row in room.failed() if row[3] == "rejected"]
    assert len(rejected) == 5
    assert "5 rows" in room.deliver.lanes["change_log"].stopped_reason
    room.check_promise_three(server.physical)
    server.refuses = lambda offset: False
    room.until(lambda: len(server.physical("change_log")) == 45)
    assert len(server.physical("change_log")) == 45


def test_the_bound_is_not_met_by_batches_that_follow_each_other_without_a_pause(
    room: LogRoom, server: FakeClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.deliver_failure.PARKED_ROWS_MAX", 3)
    server.refuses = lambda offset: offset % 50 == 0
    room.append(1_000)
    room.until(delivered(room, server))
    assert len(room.failed()) == 20


def test_rows_that_an_operator_tries_again_do_not_count_against_the_bound(
    room: LogRoom, server: FakeClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replicator.deliver_failure.PARKED_ROWS_MAX", 3)
    server.refuses = lambda offset: offset in (3, 9)
    room.append(20)
    room.until(delivered(room, server))
    for _ in range(3):
        for failed in room.ledger.open_failures(room.deliver.session):
            room.deliver.add_redrive(failed, requested_by="operator")
        room.until(lambda: not room.deliver.lanes["change_log"].redrives)
    assert not room.deliver.lanes["change_log"].stopped_reason
    assert [row[1] for row in room.failed()] == [3, 9]


def test_what_an_operator_has_asked_for_outlasts_a_restart_of_the_loop(room: LogRoom, server: FakeClickHouse) -> None:
    """Every comparison with a sink that was restarted or went back begins the loop anew."""
    server.refuses = lambda offset: offset in (3, 9)
    room.append(20)
    room.until(delivered(room, server))
    server.refuses = lambda offset: False
    first, _ = room.ledger.open_failures(room.deliver.session)
    room.deliver.add_redrive(first, requested_by="operator")
    room.deliver.load()
    room.until(lambda: not room.deliver.lanes["change_log"].redrives and room.failed()[0][4] == "resolved")
    assert [row[4] for row in room.failed()] == ["resolved", "open"]

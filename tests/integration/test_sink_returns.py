"""The sink went back: truncated, dropped, restored from an older copy. What it lost is sent again, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from capture_room import wait_until
from service_room import ServiceRoom

from replicator.embedded.clickhouse import ClickHouse
from replicator.operations import Operations, Selection

TRADES = """
[[tables]]
name = "trades"
stream = "trades"
key = ["trade_id"]
[tables.columns]
trade_id = "VARCHAR"
n = "BIGINT"
"""
PARKED = "select reason, first_offset, last_offset from failed_syncs where status = 'open' and row_count = 1"


@pytest.fixture
def room(
    redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str, tmp_path: Path
) -> Iterator[ServiceRoom]:
    room = ServiceRoom(directory=tmp_path, redis_url=redis_url, server=clickhouse_server, database=clickhouse_database)
    yield room
    room.stop()
    clickhouse_server.start()
    room.client.close()


def numbers(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def delivered(room: ServiceRoom, *lasts: int) -> None:
    """Batches that end at these offsets."""
    first = room.service.changelog.head + 1
    for last in lasts:
        room.add(first, last)
        room.wait_delivered(last)
        first = last + 1


def wait_held(room: ServiceRoom, last: int) -> None:
    wait_until(lambda: room.held == numbers(1, last) or room.failed, f"all of {last} in ClickHouse")
    assert room.failed is None, room.failed
    room.wait_delivered(last)


def ledger(room: ServiceRoom) -> list[tuple[int, int]]:
    sql = "select first_offset, last_offset from {d}.replicator_batches final where row_count > 0 order by 1"
    return [(int(first), int(last)) for first, last in room.asked(sql)]


def seem_restarted(room: ServiceRoom) -> None:
    """Have the log remember another start of ClickHouse than its last."""
    session = room.service.database.session()
    session.execute("update meta set value = (value::double - 100)::varchar where key = 'sink_started_at'")
    session.close()


@pytest.fixture
def declared(
    redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str, tmp_path: Path
) -> Iterator[ServiceRoom]:
    room = ServiceRoom(
        directory=tmp_path, redis_url=redis_url, server=clickhouse_server, database=clickhouse_database, tables=TRADES
    )
    yield room
    room.stop()
    room.client.close()


def suspects(room: ServiceRoom) -> list[str]:
    """Which tables a comparison on schedule would have taken back."""
    session = room.service.database.session()
    try:
        return room.service.reconciler.sink_return(session).suspects()
    finally:
        session.close()


@pytest.fixture
def stopped(room: ServiceRoom) -> ServiceRoom:
    """Three batches delivered, the service stopped."""
    room.start()
    delivered(room, 30, 60, 90)
    room.stop()
    return room


def test_a_truncated_table_is_filled_again(stopped: ServiceRoom) -> None:
    stopped.asked("truncate table {d}.change_log")
    stopped.start()
    wait_held(stopped, 90)
    assert stopped.physical == 90 and ledger(stopped)[-1][1] == 90
    [(actor, effect)] = stopped.rows("select actor, effect from operator_actions where action = 'rewind'")
    assert actor == "replicator" and "sent again" in effect


@pytest.mark.parametrize("what", ["table", "database"])
def test_what_was_dropped_is_made_and_filled_again(stopped: ServiceRoom, what: str) -> None:
    stopped.asked("drop table {d}.change_log sync" if what == "table" else "drop database {d} sync")
    stopped.start()
    wait_held(stopped, 90)
    assert stopped.physical == 90


def test_an_older_copy_of_the_sink_gets_only_what_it_lacks(stopped: ServiceRoom) -> None:
    stopped.asked("delete from {d}.change_log where log_offset > 60")
    stopped.asked("delete from {d}.replicator_batches where last_offset > 60")
    stopped.start()
    wait_held(stopped, 90)
    [(again,)] = stopped.rows("select count(*) from sync_batches where last_offset > 60")
    assert stopped.rows("select effect from operator_actions where action = 'rewind'") == [
        (f"{again} batches sent again, 0 lost",)
    ]
    delivered(stopped, 95)
    assert stopped.held == numbers(1, 95)


def test_rows_missing_in_the_middle_are_sent_again_alone(stopped: ServiceRoom) -> None:
    stopped.asked("delete from {d}.change_log where log_offset between 40 and 50")
    before = stopped.asked("select groupArray((log_offset, _send)) from {d}.change_log where log_offset <= 30")
    stopped.start()
    wait_held(stopped, 90)
    assert before == stopped.asked("select groupArray((log_offset, _send)) from {d}.change_log where log_offset <= 30")


def test_a_lost_ledger_is_written_again_and_nothing_is_sent_twice(stopped: ServiceRoom) -> None:
    was = ledger(stopped)
    stopped.asked("truncate table {d}.replicator_batches")
    stopped.start()
    wait_until(lambda: ledger(stopped) == was, "the ledger written again")
    assert stopped.physical == 90
    assert stopped.rows("select count(*) from operator_actions where action = 'rewind'") == [(0,)]


def test_what_retention_has_pruned_is_recorded_as_lost(stopped: ServiceRoom) -> None:
    stopped.start()
    session = stopped.service.database.session()
    session.execute("delete from change_log where log_offset <= 45")
    session.close()
    stopped.stop()
    stopped.asked("truncate table {d}.change_log")
    stopped.start()
    wait_until(lambda: stopped.held == numbers(46, 90), "what the log still has")
    sql = "select min(first_offset), max(last_offset), sum(row_count), any_value(reason), any_value(status) from failed_syncs"
    assert stopped.rows(sql) == [(1, 45, 45, "lost", "open")]
    delivered(stopped, 95)
    stopped.stop()
    stopped.start()  # and it stays settled
    delivered(stopped, 100)
    assert stopped.held == numbers(46, 100)
    assert stopped.rows("select count(*) from operator_actions where action = 'rewind'") == [(1,)]


def test_a_table_truncated_under_the_running_service_is_noticed(room: ServiceRoom) -> None:
    room.start()
    delivered(room, 30, 60)
    room.asked("truncate table {d}.change_log")
    wait_held(room, 60)
    delivered(room, 70)
    assert room.held == numbers(1, 70)


def test_after_a_restart_of_clickhouse_the_last_hour_is_compared_row_by_row(
    room: ServiceRoom, clickhouse_server: ClickHouse
) -> None:
    room.start()
    delivered(room, 30, 60)
    room.asked(
        "insert into {d}.change_log select * replace ('altered' as payload, _send + 1 as _send) from {d}.change_log where log_offset = 40"
    )
    seem_restarted(room)
    room.stop()
    room.start()  # the count is right, the content is not
    wait_held(room, 60)


@pytest.fixture
def parked_in_part(room: ServiceRoom, clickhouse_server: ClickHouse) -> ServiceRoom:
    """A batch that was parked in an outage and sent again after it: one row is refused, the others are there."""
    room.start()
    delivered(room, 30)
    room.asked(
        "alter table {d}.change_log add constraint clean check not position(assumeNotNull(payload), '\"n\":35}')"
    )
    clickhouse_server.kill()
    room.add(31, 40)
    wait_until(lambda: room.rows("select count(*) from failed_syncs") != [(0,)], "the batch is parked")
    clickhouse_server.start()
    wait_until(lambda: room.rows(PARKED) == [("rejected", 35, 35)], "one row is left")
    room.wait_delivered(40)
    wait_until(lambda: room.held == [*numbers(1, 34), *numbers(36, 40)], "the others are there")
    return room


def test_of_a_batch_that_is_parked_in_part_the_rest_is_not_taken_for_lost(parked_in_part: ServiceRoom) -> None:
    room, physical = parked_in_part, parked_in_part.physical
    seem_restarted(room)
    room.stop()
    room.start()  # ClickHouse was restarted: the last hour is compared row by row
    delivered(room, 45)
    assert room.rows("select * from operator_actions where action = 'rewind'") == []
    assert room.rows(PARKED) == [("rejected", 35, 35)] and room.physical == physical + 5
    assert suspects(room) == []


def test_a_batch_that_came_back_in_pieces_is_in_the_ledger_once(parked_in_part: ServiceRoom) -> None:
    room = parked_in_part
    room.asked("alter table {d}.change_log drop constraint clean")
    parts = {"database": room.service.database, "controls": room.service.controls, "ledger": room.service.ledger}
    Operations(**parts, deliver=room.service.deliver).failed_retry(Selection(all=True), actor="an operator")  # type: ignore[arg-type]
    wait_held(room, 40)
    wait_until(lambda: room.rows(PARKED) == [], "the last piece is resolved")
    pieces = ledger(room)
    seem_restarted(room)
    room.stop()
    room.start()
    delivered(room, 45)
    assert suspects(room) == []
    assert [each for each in ledger(room) if each[1] <= 40] == pieces


def test_of_a_batch_that_is_parked_in_part_what_was_lost_comes_back(parked_in_part: ServiceRoom) -> None:
    room = parked_in_part
    room.stop()
    room.asked("delete from {d}.change_log where log_offset in (32, 38)")
    room.start()
    wait_until(lambda: room.held == [*numbers(1, 34), *numbers(36, 40)], "what was lost is sent again")
    delivered(room, 45)
    assert room.rows(PARKED) == [("rejected", 35, 35)]
    assert room.rows("select reason, status from failed_syncs where status = 'open'") == [("rejected", "open")]
    room.stop()
    room.start()  # and it stays settled
    delivered(room, 50)
    assert room.held == [*numbers(1, 34), *numbers(36, 50)]
    assert len(room.rows("select * from operator_actions where action = 'rewind'")) == 1


def test_a_table_in_an_outage_is_not_taken_for_one_that_went_back(room: ServiceRoom) -> None:
    room.start()
    delivered(room, 30)
    full = "parts_to_delay_insert = 1, parts_to_throw_insert = 1"  # too many parts: as an outage of this table alone
    room.asked(f"alter table {{d}}.change_log modify setting {full}")
    room.add(31, 40)
    wait_until(lambda: room.rows("select reason from failed_syncs") == [("outage",)], "the batch is parked")
    assert suspects(room) == []
    room.asked("alter table {d}.change_log reset setting parts_to_delay_insert, parts_to_throw_insert")
    wait_held(room, 40)
    assert suspects(room) == []


@pytest.mark.parametrize("which", ["true", "last_offset >= 35"])
def test_a_ledger_lost_beside_a_parked_batch_is_written_again_and_that_is_all(
    parked_in_part: ServiceRoom, which: str
) -> None:
    room, physical = parked_in_part, parked_in_part.physical
    room.asked(f"delete from {{d}}.replicator_batches where {which}")
    wait_until(lambda: ledger(room) and not suspects(room), "the ledger written again")
    delivered(room, 45)
    assert room.physical == physical + 5 and room.rows(PARKED) == [("rejected", 35, 35)]
    assert room.rows("select * from operator_actions where action = 'rewind'") == []
    room.stop()
    room.start()
    delivered(room, 50)
    assert suspects(room) == [] and room.held == [*numbers(1, 34), *numbers(36, 50)]


def test_current_rows_that_an_older_copy_lacks_are_made_again(declared: ServiceRoom) -> None:
    """A copy taken between the two parts of an insert: the history is whole, the current rows are not."""
    room = declared.start()
    delivered(room, 30)
    seem_restarted(room)
    room.stop()
    room.asked("alter table {d}.trades_state delete where n between 10 and 20 settings mutations_sync = 1")
    room.start()
    wait_until(lambda: room.asked("select count() from {d}.trades") == [("30",)], "current rows made again")
    assert room.held == numbers(1, 30)


def test_a_log_from_before_a_delivery_sends_under_numbers_of_its_own(room: ServiceRoom) -> None:
    room.start()
    delivered(room, 30)
    room.service.controls.pause("deliver", actor="test")
    room.add(31, 40)
    room.wait_logged(40)
    room.copy()
    room.service.controls.resume("deliver", actor="test")
    room.wait_delivered(40)
    room.stop()
    room.turn_back()
    room.add(41, 45)  # so that another range is cut than before
    room.start()
    room.service.controls.resume("deliver", actor="test")
    wait_held(room, 45)
    twice = "select log_offset from {d}.change_log group by log_offset, _send having count() > 1"
    assert room.asked(twice) == []


def test_a_sink_that_is_whole_is_left_alone(stopped: ServiceRoom) -> None:
    stopped.start()
    delivered(stopped, 95)
    assert stopped.physical == 95
    assert stopped.rows("select count(*) from operator_actions where action = 'rewind'") == [(0,)]


def test_tables_dropped_before_anything_was_delivered_are_made_anew(room: ServiceRoom) -> None:
    """No checkpoint tells of them, and the ledger alone is not written to when a batch is asked about."""
    room.start()
    wait_until(lambda: room.service.deliver.loaded, "delivery under way")
    room.asked("drop table {d}.replicator_batches sync")
    room.asked("drop table {d}.change_log sync")
    delivered(room, 30)
    assert room.held == numbers(1, 30) and room.physical == 30

"""The log went back: an old copy, a torn WAL. What it lost is had back, and no offset is ever used twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from capture_room import wait_until
from service_room import ServiceRoom

from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import DatabaseUnavailable, OwnershipLost
from replicator.log_return import LogReturn

TRADES = """
[[tables]]
name = "trades"
stream = "trades"
key = ["trade_id"]
[tables.columns]
trade_id = "VARCHAR"
n = "BIGINT"
"""


@pytest.fixture
def room(
    redis_url: str,
    clickhouse_server: ClickHouse,
    clickhouse_database: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[ServiceRoom]:
    room = ServiceRoom(
        directory=tmp_path,
        redis_url=redis_url,
        server=clickhouse_server,
        database=clickhouse_database,
        tables=getattr(request, "param", ""),
    )
    yield room
    room.stop()
    clickhouse_server.start()
    room.client.close()


both_lanes = pytest.mark.parametrize("room", ["", TRADES], ids=["undeclared", "declared"], indirect=True)


def numbers(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def delivered(room: ServiceRoom, first: int, last: int) -> None:
    room.add(first, last)
    room.wait_delivered(last)


def copied(room: ServiceRoom, last: int) -> None:
    """Changes up to ``last`` delivered, the service stopped, a copy of the file made."""
    room.start()
    delivered(room, 1, last)
    room.stop()
    room.copy()


def returned(room: ServiceRoom) -> list[tuple[int, ...]]:
    """(head, top, timeline, fetched, voided) of each return."""
    return room.rows("select log_head, top_offset, timeline, fetched, voided from log_returns order by found_at")


def offsets_are_whole(room: ServiceRoom) -> bool:
    return room.rows("select count(*) = max(log_offset) and count(distinct log_offset) = count(*) from change_log")[0][
        0
    ]


@both_lanes
def test_an_old_copy_of_the_log_gets_back_what_the_sink_has(room: ServiceRoom) -> None:
    copied(room, 100)
    room.start()
    delivered(room, 101, 200)
    room.stop()
    room.turn_back()
    room.start()
    room.add(201, 250)
    room.wait_delivered(250)
    assert returned(room) == [(100, 200, 2, 100, 0)]
    assert room.logged == numbers(1, 250) and room.held == numbers(1, 250)
    assert offsets_are_whole(room) and room.physical == 250
    assert room.rows("select count(*) from stream_gaps") == [(0,)]
    assert room.rows(
        "select min(version) = (1::bigint << 48) + 1, max(version) = (2::bigint << 48) + 250 from change_log"
    ) == [(True, True)]


def test_what_nobody_holds_becomes_void_and_is_read_again_at_new_offsets(room: ServiceRoom) -> None:
    copied(room, 100)
    room.start()
    room.service.controls.pause("deliver", actor="test")
    room.add(101, 150)
    room.wait_logged(150)
    room.stop()
    room.turn_back()
    room.start()
    room.wait_delivered(200)
    assert returned(room) == [(100, 150, 2, 0, 50)]
    assert room.logged == numbers(1, 150) and room.held == numbers(1, 150)
    assert room.rows("select min(log_offset), max(log_offset) from change_log where op = 'v'") == [(101, 150)]
    delivered(room, 201, 210)
    assert room.held == numbers(1, 150) + numbers(201, 210)
    assert offsets_are_whole(room)


@pytest.mark.parametrize("room", [TRADES], indirect=True)
def test_a_lane_that_the_copy_has_no_checkpoint_of_is_delivered_from_its_first_change(room: ServiceRoom) -> None:
    room.start()
    room.service.controls.pause("deliver", actor="test")
    room.client.xadd("trades", {"table": "notes", "key": "N1", "data": '{"n":1}'})
    room.wait_logged(1)
    room.stop()
    room.copy()
    room.start()
    room.service.controls.pause("table:change_log", actor="test")
    room.service.controls.resume("deliver", actor="test")
    room.add(2, 10)
    wait_until(lambda: len(room.held) == 9, "the other lane in the sink")
    room.stop()
    room.turn_back()
    room.start()
    room.service.controls.resume("deliver", actor="test")
    room.wait_delivered(10)
    assert room.asked("select log_offset, key from {d}.change_log") == [("1", "N1")]
    assert room.held == numbers(2, 10)


def test_a_return_that_was_stored_and_is_said_to_have_failed_is_not_stored_again(
    room: ServiceRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(room, 20)
    room.start()
    delivered(room, 21, 30)
    room.stop()
    room.turn_back()
    heal, said = LogReturn.heal, []

    def stored_and_doubted(healing: LogReturn) -> None:
        head = healing.changelog.head
        heal(healing)
        if not said:
            said.append(head)
            healing.changelog.head, healing.changelog.timeline = head, 1
            raise DatabaseUnavailable("the commit's outcome is unknown")

    monkeypatch.setattr(LogReturn, "heal", stored_and_doubted)
    room.start()
    delivered(room, 31, 35)
    assert said == [20] and returned(room) == [(20, 30, 2, 10, 0)]
    assert room.logged == numbers(1, 35) and offsets_are_whole(room)


def test_a_torn_wal_is_noticed_and_healed(room: ServiceRoom) -> None:
    room.start()
    delivered(room, 1, 50)
    room.service.upkeep.stop.is_set()
    delivered(room, 51, 100)
    wait_until(lambda: room.service.database.wal_bytes() > 0, "something in the WAL")
    kept = room.copy()
    room.stop()
    wal = kept.with_name(kept.name + ".wal")
    wal.write_bytes(wal.read_bytes()[: wal.stat().st_size * 2 // 3])
    room.turn_back()
    room.start()
    delivered(room, 101, 120)
    [(head, top, timeline, fetched, voided)] = returned(room)
    assert head < 100 and (top, timeline) == (100, 2) and fetched + voided == 100 - head
    assert sorted(set(room.held)) == numbers(1, 120) and sorted(room.logged) == numbers(1, 120)
    assert offsets_are_whole(room)


def test_entries_that_redis_trimmed_meanwhile_are_no_gap_when_the_sink_has_them(room: ServiceRoom) -> None:
    copied(room, 100)
    room.start()
    delivered(room, 101, 200)
    room.client.xtrim("trades", maxlen=20, approximate=False)
    room.stop()
    room.turn_back()
    room.start()
    delivered(room, 201, 210)
    assert room.logged == numbers(1, 210) and room.held == numbers(1, 210)
    assert room.rows("select count(*) from stream_gaps") == [(0,)]


def test_an_entry_older_than_a_fetched_change_of_its_key_is_superseded(room: ServiceRoom) -> None:
    copied(room, 10)
    room.start()
    for n in (11, 12):
        room.client.xadd("trades", {"data": f'{{"n":{n}}}', "key": "same"})
    room.wait_delivered(12)
    room.stop()
    room.asked("delete from {d}.change_log where log_offset = 11")
    room.turn_back()
    room.start()
    delivered(room, 13, 14)
    assert room.logged == [*numbers(1, 10), 12, 13, 14]
    [(reason, status)] = room.rows("select reason, status from rejected_entries")
    assert reason.startswith("superseded") and status == "open"


def test_a_second_return_goes_on_above_the_first(room: ServiceRoom) -> None:
    copied(room, 20)
    for life in (1, 2):
        room.start()
        delivered(room, life * 20 + 1, life * 20 + 20)
        room.stop()
        room.turn_back()
    room.start()
    delivered(room, 61, 70)
    assert room.logged == numbers(1, 70) and room.held == numbers(1, 70)
    assert room.service.changelog.timeline == 4 or room.service.changelog.timeline == 3
    assert offsets_are_whole(room)


def test_a_copy_that_went_on_alone_and_the_file_it_left_behind_do_not_both_log(room: ServiceRoom) -> None:
    copied(room, 100)
    room.start()
    room.service.controls.pause("deliver", actor="test")
    room.add(101, 150)
    room.wait_logged(150)
    room.stop()
    room.copy("left behind")  # with 50 changes that nobody else has
    room.turn_back()
    room.start()
    room.wait_delivered(200)  # its copy has read them again, behind 50 void rows
    room.stop()
    room.copy("went on")
    room.turn_back("left behind")
    room.start()
    error = room.wait_failed()
    assert isinstance(error, OwnershipLost)
    assert "behind offset 100 (timeline 2), and 50 changes from offset 101 on" in str(error) and "restore" in error.hint
    with duckdb.connect(room.path, read_only=True) as file:
        assert file.sql(
            "select count(*), max(log_offset), (select count(*) from log_returns) from change_log"
        ).fetchall() == [(150, 150, 0)]
    room.turn_back("went on")
    room.start()
    delivered(room, 201, 210)
    assert room.held == numbers(1, 150) + numbers(201, 210) and offsets_are_whole(room)


def test_a_file_whose_changes_were_all_delivered_goes_on_after_its_copy(room: ServiceRoom) -> None:
    copied(room, 100)
    room.start()
    delivered(room, 101, 150)
    room.stop()
    room.copy("left behind")
    room.turn_back()
    room.start()
    delivered(room, 151, 200)
    room.stop()
    room.turn_back("left behind")
    room.start()
    delivered(room, 201, 210)
    assert room.held == room.logged == numbers(1, 210) and offsets_are_whole(room) and room.physical == 210


def test_a_key_of_ours_with_something_else_in_it_is_refused_by_name(room: ServiceRoom) -> None:
    room.client.set("replicator:main:returns", b"2:100,\xff:1")
    room.start()
    wait_until(lambda: "key `returns` in Redis holds" in room.service.loops["capture"].error, "it is named")
    assert room.service.changelog.head == 0 and room.failed is None
    room.client.delete("replicator:main:returns")
    delivered(room, 1, 10)


def test_an_empty_file_under_a_ledger_is_refused_and_names_restore(room: ServiceRoom) -> None:
    room.start()
    delivered(room, 1, 10)
    room.stop()
    room.path.unlink()
    room.client.flushall()
    room.start()
    error = room.wait_failed()
    assert isinstance(error, OwnershipLost) and "empty" in str(error) and "replicator restore" in str(error)


def test_capture_waits_for_the_sink_when_redis_cannot_vouch_for_the_log(
    room: ServiceRoom, clickhouse_server: ClickHouse
) -> None:
    copied(room, 20)
    room.start()
    delivered(room, 21, 40)
    room.stop()
    room.turn_back()
    clickhouse_server.stop()
    room.start()
    room.add(41, 50)
    wait_until(lambda: room.service.loops["capture"].unavailable, "capture waiting")
    assert "capture waits" in room.service.loops["capture"].error
    assert room.service.changelog.head == 20
    clickhouse_server.start()
    room.wait_delivered(50)
    assert room.logged == numbers(1, 50) and room.held == numbers(1, 50)


def test_capture_goes_on_without_the_sink_when_redis_vouches_for_the_log(
    room: ServiceRoom, clickhouse_server: ClickHouse
) -> None:
    room.start()
    delivered(room, 1, 20)
    room.stop()
    clickhouse_server.stop()
    room.start()
    room.add(21, 40)
    room.wait_logged(40)
    clickhouse_server.start()
    room.wait_delivered(40)
    assert room.held == numbers(1, 40) and returned(room) == []


def test_both_sides_gone_back_are_brought_together(room: ServiceRoom) -> None:
    copied(room, 30)
    room.start()
    delivered(room, 31, 60)
    delivered(room, 61, 90)
    room.stop()
    room.asked("delete from {d}.change_log where log_offset > 45 or log_offset <= 10")
    room.asked("delete from {d}.replicator_batches where last_offset > 30")
    room.turn_back()
    room.start()
    room.add(91, 100)
    wait_until(lambda: sorted(set(room.held)) == numbers(1, 100) or room.failed, "both sides whole")
    assert sorted(room.logged) == numbers(1, 100) and offsets_are_whole(room)


def test_a_log_that_retention_has_emptied_goes_on_behind_what_was_delivered(room: ServiceRoom) -> None:
    room.start()
    delivered(room, 1, 20)
    session = room.service.database.session()
    session.execute("delete from change_log")
    session.close()
    room.stop()
    room.start()
    assert room.service.changelog.head == 20
    delivered(room, 21, 25)
    assert room.held == numbers(1, 25) and returned(room) == []


def test_what_was_fetched_claims_its_idempotency_keys(room: ServiceRoom) -> None:
    def put(n: int) -> None:
        room.client.xadd("trades", {"data": f'{{"n":{n}}}', "id": f"id-{n}"})

    room.start()
    put(1)
    room.wait_delivered(1)
    room.stop()
    room.copy()
    room.start()
    put(2)
    room.wait_delivered(2)
    room.stop()
    room.turn_back()
    room.start()
    for n in (1, 2, 3):
        put(n)  # the first two are sent again, by a producer that had no answer
    room.wait_delivered(3)
    assert room.rows("select event_id from change_log order by log_offset") == [("id-1",), ("id-2",), ("id-3",)]
    assert room.physical == 3

"""Trimming Redis: what is durable goes, what anybody still needs stays, and a trim of ours never looks like a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from capture_room import wait_until
from service_room import ServiceRoom

from replicator.embedded.clickhouse import ClickHouse
from replicator.model import EntryId
from replicator.preflight import redis_acl
from replicator.source import RedisSource, SourceOptions
from replicator.source_trim import StreamTrimming

NODE_ENTRIES = 100
"""What Redis keeps together at most: it removes whole nodes."""
Open = Callable[[str], ServiceRoom]


@pytest.fixture
def trimming(redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str, tmp_path: Path) -> Iterator[Open]:
    """Opens the one room of a test, with a mode of trimming."""
    rooms: list[ServiceRoom] = []

    def opened(mode: str) -> ServiceRoom:
        room = ServiceRoom(
            directory=tmp_path,
            redis_url=redis_url,
            server=clickhouse_server,
            database=clickhouse_database,
            redis=f'trim = "{mode}"',
        )
        rooms.append(room)
        return room.start()

    yield opened
    for room in rooms:
        room.stop()
        room.client.close()


def numbers(last: int) -> list[int]:
    return list(range(1, last + 1))


def trimmed_to_a_node(room: ServiceRoom) -> bool:
    return int(room.client.xlen("trades")) <= NODE_ENTRIES + 1


def nothing_lost(room: ServiceRoom, last: int) -> None:
    room.wait_delivered(last)
    assert room.logged == numbers(last) and room.held == numbers(last)
    assert room.rows("select * from stream_gaps") == []


def test_what_is_logged_goes_while_producers_go_on(trimming: Open) -> None:
    room = trimming("logged")
    for first in range(1, 5_001, 500):
        room.add(first, first + 499)
        room.wait_logged(first + 499)
    wait_until(lambda: trimmed_to_a_node(room), "the stream trimmed")
    assert room.client.xlen("trades") >= 1  # the last logged entry stays
    nothing_lost(room, 5_000)
    assert room.service.keeping.trim_status().entries == 5_000 - room.client.xlen("trades")


def test_what_the_sink_does_not_have_stays_when_it_must_confirm(trimming: Open) -> None:
    room = trimming("confirmed")
    room.add(1, 1_000)
    room.wait_delivered(1_000)
    wait_until(lambda: trimmed_to_a_node(room), "the confirmed part trimmed")
    room.service.controls.pause("deliver", actor="test")
    room.add(1_001, 3_000)
    room.wait_logged(3_000)
    room.service.keeping.trimmer.turn()
    assert room.client.xlen("trades") >= 2_000
    room.service.controls.resume("deliver", actor="test")
    room.wait_delivered(3_000)
    wait_until(lambda: trimmed_to_a_node(room), "the rest trimmed")
    nothing_lost(room, 3_000)


def test_an_open_failed_sync_keeps_its_entries_and_a_discarded_one_does_not(trimming: Open) -> None:
    room = trimming("confirmed")
    room.service.controls.pause("deliver", actor="test")
    room.add(1, 1_000)
    room.wait_logged(1_000)
    [(first,)] = room.rows("select entry_id from change_log where log_offset = 301")
    room.rows("insert into checkpoints values ('change_log', 1000, now()::timestamp)")
    room.rows(
        "insert into failed_syncs (id, table_name, first_offset, last_offset, row_count, reason, attempts, "
        "first_failed_at, last_failed_at, status) values (1, 'change_log', 301, 400, 100, 'outage', 1, "
        "now()::timestamp, now()::timestamp, 'open')"
    )
    assert room.service.keeping.trimmer.limits() == {"trades": first}
    room.rows("update failed_syncs set status = 'discarded'")
    [(last,)] = room.rows("select entry_id from change_log where log_offset = 1000")
    assert room.service.keeping.trimmer.limits() == {"trades": last}


def test_nothing_that_another_group_needs_is_trimmed(trimming: Open, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    client.xgroup_create("trades", "audit", id="0", mkstream=True)
    room = trimming("logged")
    room.add(1, 1_000)
    room.wait_logged(1_000)
    room.service.keeping.trimmer.turn()
    assert client.xlen("trades") == 1_000
    assert room.service.keeping.trim_status().held_by == {"trades": "audit"}
    [(_, entries)] = client.xreadgroup("audit", "one", {"trades": ">"}, count=800)
    room.service.keeping.trimmer.turn()
    assert client.xlen("trades") == 1_000  # delivered is not acknowledged
    client.xack("trades", "audit", *[entry_id for entry_id, _ in entries[:500]])
    wait_until(lambda: client.xlen("trades") <= 600, "what is acknowledged trimmed")
    assert client.xlen("trades") >= 500
    client.xack("trades", "audit", *[entry_id for entry_id, _ in entries])
    client.xgroup_setid("trades", "audit", "$")
    wait_until(lambda: trimmed_to_a_node(room), "the rest trimmed")
    wait_until(lambda: room.service.keeping.trim_status().held_by == {}, "nobody in the way")
    client.close()
    nothing_lost(room, 1_000)


def test_a_loss_by_another_is_still_counted_exactly_after_trims_of_ours(trimming: Open) -> None:
    room = trimming("logged")
    room.add(1, 1_000)
    room.wait_logged(1_000)
    wait_until(lambda: trimmed_to_a_node(room), "the stream trimmed")
    room.stop()
    room.add(1_001, 1_050)
    room.client.xtrim("trades", maxlen=20, approximate=False)
    room.start()
    room.wait_logged(1_020)
    wait_until(lambda: room.rows("select 1 from stream_gaps"), "the gap")
    assert room.rows("select entries_lost, cause from stream_gaps") == [(30, "trimmed")]
    assert room.logged == [*numbers(1_000), *range(1_031, 1_051)]


def test_a_restart_after_trims_reads_nothing_twice_and_misses_nothing(trimming: Open) -> None:
    room = trimming("logged")
    for round_ in range(3):
        room.add(500 * round_ + 1, 500 * round_ + 500)
        room.wait_logged(500 * round_ + 500)
        room.service.keeping.trimmer.turn()
        room.stop()
        room.start()
    nothing_lost(room, 1_500)


# ── the step itself ──


@pytest.fixture
def step(redis_url: str) -> Iterator[tuple[StreamTrimming, redis.Redis]]:
    source = RedisSource(SourceOptions(url=redis_url))
    client = redis.Redis.from_url(redis_url)
    for number in range(1, 1_001):
        client.xadd("s", {"n": number}, id=f"{number}-7")
    client.xgroup_create("s", source.group, id="1000-7")
    yield StreamTrimming(source), client
    source.close()
    client.close()


def trim(step: tuple[StreamTrimming, redis.Redis], before: str = "1000-7") -> int:
    return step[0].trim("s", EntryId(before), entries_max=10_000).entries


def test_the_entry_it_is_given_stays(step: tuple[StreamTrimming, redis.Redis]) -> None:
    assert trim(step) == 900
    assert step[1].xrange("s")[-1][0] == b"1000-7"
    assert trim(step) == 0


@pytest.mark.parametrize(
    "turn",
    [
        lambda client: client.xgroup_destroy("s", "replicator:main"),
        lambda client: client.xgroup_setid("s", "replicator:main", "999-7"),
        lambda client: client.delete("s"),
        lambda client: (client.delete("s"), client.xadd("s", {"n": 1}, id="1-1")),
        lambda client: (client.delete("s"), client.set("s", "a text")),
    ],
    ids=["our group gone", "our group rolled back", "deleted", "recreated", "another type"],
)
def test_a_stream_that_is_not_the_one_that_was_read_is_left_alone(
    step: tuple[StreamTrimming, redis.Redis], turn: Callable[[redis.Redis], object]
) -> None:
    turn(step[1])
    before = step[1].dump("s")
    assert trim(step) == 0
    assert step[1].dump("s") == before


def test_ids_are_compared_as_numbers_however_large(step: tuple[StreamTrimming, redis.Redis]) -> None:
    client = step[1]
    high = [f"9007199254740993-{2**64 - 3 + n}" for n in range(3)]
    for entry_id in high:
        client.xadd("s", {"n": 0}, id=entry_id)
    client.xgroup_setid("s", "replicator:main", high[1])
    client.xgroup_create("s", "other", id="99-7")
    assert trim(step, high[2]) == 0  # one beyond where our group stands
    assert trim(step, high[1]) == 0  # 99 is before 100, and its node holds both
    client.xgroup_setid("s", "other", "100-7")
    client.xadd("s", {"n": 0}, id=f"9007199254740994-{2**64 - 1}")
    client.xgroup_setid("s", "other", "201-7")
    assert trim(step, high[1]) == 200


def test_a_user_with_the_rights_that_check_prints_can_trim(
    step: tuple[StreamTrimming, redis.Redis], redis_url: str, trimming: Open
) -> None:
    settings = trimming("logged").service.settings
    words = redis_acl(settings).replace("<password>", "pw").replace("~trades", "~trades ~s").split()
    step[1].execute_command(*words)
    source = RedisSource(SourceOptions(url=redis_url, username=words[2], password="pw"))
    try:
        assert StreamTrimming(source).trim("s", EntryId("1000-7"), entries_max=10_000).entries == 900
    finally:
        source.close()
        step[1].execute_command("ACL", "DELUSER", words[2])

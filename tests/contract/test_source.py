"""What the source does over a real Redis and over the fake one of the simulation: one suite for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import redis
from attrs import define, evolve
from contract.fake_redis import FakeClient, FakeRedis
from contract.fakes import wait_until

from replicator.embedded.valkey import Valkey
from replicator.errors import SourceRefused, SourceTurned, SourceUnavailable
from replicator.model import EntryId, StreamPosition
from replicator.source import RedisSource, SourceOptions

START = StreamPosition(stream="trades")


@define
class NearEnd:
    """A source, a producer's client, and the server behind both."""

    source: RedisSource
    do: Callable[..., Any]
    kill: Callable[[], object]
    start: Callable[[], object]

    def add(self, *ids: int, stream: str = "trades") -> None:
        for number in ids:
            self.do("XADD", stream, f"{number}-1", "data", f'{{"n":{number}}}')

    def sighting(self, position: StreamPosition = START) -> Any:
        return self.source.check({"trades": position}).sightings["trades"]


@pytest.fixture(params=["fake", "redis"])
def near_end(request: pytest.FixtureRequest) -> Iterator[NearEnd]:
    if request.param == "fake":
        server = FakeRedis()
        yield NearEnd(server.source(), FakeClient(server).execute_command, server.kill, server.start)
        return
    real: Valkey = request.getfixturevalue("redis_server")
    client = redis.Redis.from_url(real.url, protocol=2)
    source = RedisSource(SourceOptions(url=real.url, timeout_seconds=2))
    yield NearEnd(source, client.execute_command, real.kill, real.start)
    source.close()
    client.close()


def at(entry: int, **more: Any) -> StreamPosition:
    return evolve(START, last_entry_id=EntryId(f"{entry}-1"), **more)


def numbers(reads: Any) -> list[int]:
    return [int(entry_id.partition(b"-")[0]) for read in reads for entry_id in read.ids]


def test_entries_behind_the_position_come_once_in_order(near_end: NearEnd) -> None:
    near_end.add(*range(1, 201))
    got: list[int] = []
    position = START
    while True:
        reads, behind = near_end.source.read({"trades": position}, block_seconds=0.01)
        if not reads:
            break
        got += numbers(reads)
        position = at(got[-1])
        assert behind or got[-1] == 200
    assert got == list(range(1, 201))


def test_fields_come_as_they_were_sent(near_end: NearEnd) -> None:
    near_end.do("XADD", "trades", "5-0", b"a\xff", b"\x00", "", "")
    reads, _ = near_end.source.read({"trades": START}, block_seconds=0.01)
    assert [list(entry) for entry in reads[0].fields] == [[b"a\xff", b"\x00", b"", b""]]


def test_an_entry_logged_in_part_is_read_again_with_the_rows_to_skip(near_end: NearEnd) -> None:
    near_end.add(1, 2, 3)
    reads, _ = near_end.source.read({"trades": at(2, last_entry_row=4)}, block_seconds=0.01)
    assert numbers(reads) == [2, 3]
    assert reads[0].skip_through_row == 4


def test_a_stream_that_is_not_there_is_seen_and_waited_for(near_end: NearEnd) -> None:
    assert not near_end.sighting().about.exists
    assert near_end.source.read({"trades": START}, block_seconds=0.01) == ([], False)
    near_end.source.publish([START], timeline=1, head=0)
    near_end.add(1)
    assert near_end.sighting().about.exists


def test_our_group_stands_on_a_stream_before_anything_is_read_from_it(near_end: NearEnd) -> None:
    """Else a stream that is made anew between the first read and the first publish would pass for the one that was read."""
    near_end.add(1)
    assert near_end.sighting().about.group_entry_id is None, "there was none before this look"
    assert near_end.sighting().about.group_entry_id == "0-0"
    assert near_end.source.published == {"trades": (1, "0-0")}
    near_end.do("DEL", "trades")
    near_end.do("XADD", "trades", "0-7", "lower", "id")
    with pytest.raises(SourceTurned):
        near_end.source.publish([at(1, entries_read=1)], timeline=1, head=1)


@pytest.mark.parametrize(("stands", "turned"), [("0-0", False), ("1-1", True)], ids=["where we are", "elsewhere"])
def test_a_stream_that_comes_into_being_while_we_publish(
    near_end: NearEnd, monkeypatch: pytest.MonkeyPatch, stands: str, turned: bool
) -> None:
    """The reading connection, or somebody else, puts our group on it between our two commands."""
    create = RedisSource._create_group

    def late(source: RedisSource, position: StreamPosition) -> None:
        near_end.add(1, 2)
        near_end.do("XGROUP", "CREATE", "trades", "replicator:main", stands)
        create(source, position)

    monkeypatch.setattr(RedisSource, "_create_group", late)
    with pytest.raises(SourceTurned) if turned else nullcontext():
        near_end.source.publish([START], timeline=1, head=0)
    assert near_end.source.published == ({} if turned else {"trades": (1, "0-0")})
    assert near_end.sighting().about.group_entry_id == stands


def test_a_group_that_stands_elsewhere_is_not_taken_for_the_first(near_end: NearEnd) -> None:
    near_end.add(1, 2)
    near_end.do("XGROUP", "CREATE", "trades", "replicator:main", "2-1")
    assert near_end.sighting().about.group_entry_id == "2-1"
    assert near_end.source.published == {}


def test_a_look_tells_what_was_added_deleted_and_trimmed(near_end: NearEnd) -> None:
    near_end.add(*range(1, 11))
    near_end.do("XDEL", "trades", "4-1", "9-1")
    near_end.do("XTRIM", "trades", "MAXLEN", "6")
    seen = near_end.sighting(at(3))
    about = seen.about
    assert (about.length, about.entries_added, about.last_entry_id) == (6, 10, "10-1")
    assert (about.first_entry_id, about.deleted_entry_id) == ("3-1", "9-1")
    assert (seen.entries, seen.at_tail) == (5, True)


def test_publishing_makes_the_group_moves_it_and_leaves_the_head(near_end: NearEnd) -> None:
    near_end.add(1, 2, 3)
    assert near_end.source.published_head() is None
    near_end.source.publish([at(2, entries_read=2, entries_unread=0)], timeline=3, head=7)
    assert near_end.sighting().about.group_entry_id == "2-1"
    near_end.source.publish([at(3, entries_read=3, entries_unread=0)], timeline=3, head=8)
    seen = near_end.sighting()
    assert (seen.about.group_entry_id, seen.about.group_entries_read, seen.head_witnessed) == ("3-1", 3, True)
    assert near_end.source.published_head() == (3, 8)
    assert near_end.source.published == {"trades": (1, "3-1")}


@pytest.mark.parametrize(
    "turn",
    [
        [("XGROUP", "SETID", "trades", "replicator:main", "1-1")],
        [("DEL", "trades")],
        [("DEL", "trades"), ("XADD", "trades", "1-1", "a", "b")],
        [("FLUSHALL",)],
    ],
    ids=["rolled back", "deleted", "recreated", "flushed"],
)
def test_a_group_that_does_not_stand_where_it_was_left_is_not_overwritten(
    near_end: NearEnd, turn: list[tuple[str, ...]]
) -> None:
    near_end.add(1, 2, 3)
    near_end.source.publish([at(2)], timeline=1, head=2)
    for command in turn:
        near_end.do(*command)
    before = near_end.sighting().about.group_entry_id
    with pytest.raises(SourceTurned):
        near_end.source.publish([at(3)], timeline=1, head=3)
    assert near_end.sighting().about.group_entry_id == before


def test_a_key_of_another_type_is_named(near_end: NearEnd) -> None:
    near_end.do("SET", "trades", "text")
    with pytest.raises(SourceRefused, match="'trades' in Redis is not a stream"):
        near_end.sighting()
    with pytest.raises(SourceTurned):
        near_end.source.read({"trades": START}, block_seconds=0.01)


def test_a_killed_server_is_unavailable_and_has_kept_everything(near_end: NearEnd) -> None:
    near_end.add(1, 2)
    near_end.source.publish([at(1)], timeline=1, head=1)
    near_end.kill()
    for call in (
        lambda: near_end.source.read({"trades": START}, block_seconds=0.01),
        lambda: near_end.source.check({"trades": START}),
        lambda: near_end.source.publish([at(2)], timeline=1, head=2),
    ):
        with pytest.raises(SourceUnavailable):
            call()
    near_end.start()
    near_end.source.begin()
    seen = near_end.sighting()
    assert (seen.about.entries_added, seen.about.group_entry_id) == (2, "1-1")
    assert near_end.source.published_head() == (1, 1)


def test_a_key_is_swapped_only_where_it_holds_what_was_expected_and_expires(near_end: NearEnd) -> None:
    source = near_end.source
    assert source.swap("k", None, b"one") is None
    assert source.swap("k", b"other", b"two") == b"one"
    assert source.swap("k", b"one", b"two", 0.05) == b"one"
    assert 0 < source.seconds_left("k") <= 0.05
    wait_until(lambda: source.swap("k", None, b"three") is None, 5)
    assert source.swap("k", b"three", None) == b"three"
    assert source.swap("k", None, None) is None


def test_a_copy_that_was_put_back_is_what_the_group_shows() -> None:
    """Only the fake can be put back between two commands; a real server is tested so with its files."""
    server = FakeRedis()
    near = NearEnd(server.source(), FakeClient(server).execute_command, server.kill, server.start)
    near.add(1, 2)
    near.source.publish([at(1)], timeline=1, head=1)
    earlier = server.copy()
    near.source.publish([at(2)], timeline=1, head=2)
    server.put_back(earlier)
    assert near.sighting().about.group_entry_id == "1-1"
    with pytest.raises(SourceTurned):
        near.source.publish([at(2)], timeline=1, head=2)

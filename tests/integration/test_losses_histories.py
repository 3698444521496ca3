"""Redis turned back under a running capture: a failover to a lagging replica, an older copy restored, a log pruned."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from attrs import define, field
from capture_room import CaptureRoom, wait_until

from replicator.embedded.valkey import Valkey
from replicator.model import entry_order


@define
class Switch:
    """A door to one of several servers: the address stays, what stands behind it changes."""

    target: int
    listener: socket.socket = field(factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _pairs: list[socket.socket] = field(factory=list)

    def __enter__(self) -> Switch:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.drop()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"

    def to(self, port: int) -> None:
        self.target = port
        self.drop()

    def drop(self) -> None:
        for end in self._pairs:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._pairs.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                self._pairs += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while got := source.recv(65536):
                sink.sendall(got)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Valkey, Valkey]]:
    with Valkey(directory=tmp_path / "primary") as primary, Valkey(directory=tmp_path / "replica") as replica:
        with redis.Redis.from_url(replica.url) as far:
            far.replicaof("127.0.0.1", primary.port)
            wait_until(lambda: far.info("replication")["master_link_status"] == "up", "the replica in step")
        yield primary, replica


def payloads(first: int, last: int) -> list[str]:
    return [f'{{"n":{n}}}' for n in range(first, last + 1)]


def add(client: redis.Redis, first: int, last: int, ids: list[str] | None = None) -> list[str]:
    found = payloads(first, last)
    for place, payload in enumerate(found):
        client.xadd("trades", {"data": payload, "key": "k"}, id=ids[place] if ids else "*")
    return found


@pytest.mark.parametrize("slow_clock", [False, True], ids=["clocks_agree", "slow_clock"])
def test_a_failover_to_a_lagging_replica_neither_skips_nor_doubles(
    servers: tuple[Valkey, Valkey], tmp_path: Path, slow_clock: bool
) -> None:
    primary, replica = servers
    near, far = redis.Redis.from_url(primary.url), redis.Redis.from_url(replica.url)
    with near, far, Switch(primary.port) as switch:
        room = CaptureRoom(path=tmp_path / "log.duckdb", url=switch.url)
        kept = add(near, 1, 10)
        room.start().wait_logged(10)
        room.wait_settled()
        held = threading.Event()
        room.capture.paused = lambda: held.set() or True
        held.wait(10)
        both = add(near, 11, 20)  # the replica has these entries, but never learns that they were logged
        wait_until(lambda: far.xlen("trades") == 20, "the replica in step")
        far.replicaof("NO", "ONE")
        replica_last = far.xinfo_stream("trades")["last-generated-id"].decode()
        room.capture.paused = lambda: False
        only_near = add(near, 21, 30)
        room.wait_logged(30)
        wait_until(lambda: room.source.describe("trades").group_entry_id == room.position().behind, "published")
        last = room.position().last_entry_id
        ms = entry_order(replica_last)[0]
        behind = [f"{ms}-{entry_order(replica_last)[1] + 1 + n}" for n in range(5)]
        primary.kill()
        after = add(far, 31, 35, behind if slow_clock else None)
        assert entry_order(far.xinfo_stream("trades")["last-generated-id"].decode()) > entry_order(replica_last)
        switch.to(replica.port)
        room.wait_logged(35)
        more = add(far, 36, 40)
        room.wait_logged(40)
        gaps = room.wait_gap()
        room.wait_settled()
        logged = room.payloads
        room.stop()
    assert logged == kept + both + only_near + after + more
    assert [gap[:3] for gap in gaps] == [("failover", None, last)]


def test_an_older_copy_of_redis_restored_is_noticed_and_read_on(tmp_path: Path) -> None:
    server = Valkey(directory=tmp_path / "redis", fsync="always").start()
    room = CaptureRoom(path=tmp_path / "log.duckdb", url=server.url)
    with redis.Redis.from_url(server.url) as client:
        before = add(client, 1, 10)
        room.start().wait_logged(10)
        room.wait_settled()
        room.stop()
        server.stop()
        shutil.copytree(tmp_path / "redis", tmp_path / "copy")
        server.start()
        room.start()
        lost = add(client, 11, 20)
        room.wait_logged(20)
        room.wait_settled()
        server.stop()
        shutil.rmtree(tmp_path / "redis")
        shutil.copytree(tmp_path / "copy", tmp_path / "redis")
        server.start()
        after = add(client, 21, 25)
        room.wait_logged(25)
        assert [gap[:2] for gap in room.wait_gap()] == [("restored", None)]
        room.wait_settled()
        assert room.payloads == before + lost + after
        assert room.position().stream_epoch == 2 and len(room.gaps) == 1
        room.stop()
    server.stop()


def test_a_crash_while_reading_again_doubles_nothing(tmp_path: Path) -> None:
    with Valkey(directory=tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        room = CaptureRoom(path=tmp_path / "log.duckdb", url=server.url)
        before = add(client, 1, 200)
        room.start().wait_logged(200)
        room.wait_settled()
        dump = client.dump("trades")
        more = add(client, 201, 300)
        room.wait_logged(300)
        room.stop()
        client.delete("trades")
        client.restore("trades", 0, dump)
        client.execute_command("XGROUP", "DESTROY", "trades", "replicator:main")
        after = add(client, 301, 310)
        room.start()
        room.source._count = 16  # many small reads, so that the restart falls among them
        wait_until(lambda: room.position().stream_epoch == 2, "the new epoch")
        room.stop()
        assert room.start().position().known_through is not None
        room.wait_logged(310)
        room.wait_settled()
        logged = room.payloads
        room.stop()
    assert logged == before + more + after


def test_where_the_log_was_pruned_a_rereading_says_possible_duplicates(tmp_path: Path) -> None:
    with Valkey(directory=tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        room = CaptureRoom(path=tmp_path / "log.duckdb", url=server.url)
        before = add(client, 1, 10)
        room.start().wait_logged(10)
        room.wait_settled()
        session = room.database.session()
        session.execute("delete from change_log where log_offset <= 4")
        session.close()
        room.stop()
        client.execute_command("XGROUP", "DESTROY", "trades", "replicator:main")
        room.start().wait_logged(14)
        assert room.wait_gap()[0][0] == "recreated; possible duplicates: the log no longer holds them all"
        assert room.payloads == before[4:] + before[:4]
        room.stop()


def test_rejected_entries_read_again_are_kept_once(tmp_path: Path) -> None:
    with Valkey(directory=tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        room = CaptureRoom(path=tmp_path / "log.duckdb", url=server.url)
        for n in range(5):
            client.xadd("trades", {"data": f'{{"n":{n}}}', "key": "k"})
            client.xadd("trades", {"data": f"[{n}]"})
        room.start().wait_logged(5)
        room.wait_settled()
        room.stop()
        client.execute_command("XGROUP", "DESTROY", "trades", "replicator:main")
        room.start()
        room.wait_gap()
        room.wait_settled()
        assert len(room.payloads) == 5
        assert room.rows("select count(*) from rejected_entries") == [(5,)]
        room.stop()

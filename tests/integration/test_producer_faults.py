"""Producer when Redis is away, full or refusing, and when its program ends: nothing is lost in silence."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from replicator import BufferLimits, Producer
from replicator.embedded.valkey import Valkey
from replicator.errors import SourceRefused, SourceUnavailable


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as made:
        yield made


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def entries(client: redis.Redis, stream: str) -> list[dict[str, str]]:
    return [fields for _, fields in client.xrange(stream)]


# ── Redis away or refusing ──


def test_a_redis_that_comes_back_gets_everything_once_and_in_order(redis_server, redis_url, client):
    with Producer(redis_url) as producer:
        for number in range(100):
            producer.upsert("t", {"n": number})
        producer.flush()
        redis_server.stop()
        for number in range(100, 200):
            producer.upsert("t", {"n": number})
        with pytest.raises(SourceUnavailable, match="100 changes"):
            producer.flush(0.3)
        assert producer.unsent_rows == 100
        redis_server.start()
        producer.flush()
    assert [json.loads(each["data"])["n"] for each in entries(client, "t")] == list(range(200))


def test_a_resend_after_a_lost_reply_carries_the_same_ids(redis_url, client, free_port):
    """A proxy cuts the connection once Redis has done the work: the copy must be recognisable as one."""
    with LosingProxy(free_port, redis_url), Producer(f"redis://127.0.0.1:{free_port}") as producer:
        given = [producer.upsert("t", {"n": number}) for number in range(5)]
        producer.flush()
        given += [producer.upsert("t", {"n": number}) for number in range(5, 10)]
        producer.flush()
    got = [each["id"] for each in entries(client, "t")]
    copies = len(got) - len(given)
    assert 0 < copies <= 5
    assert got == given[:copies] + given


class LosingProxy:
    """Passes bytes on to Redis; the first answer that holds an entry id is swallowed and the connection cut."""

    def __init__(self, port: int, redis_url: str) -> None:
        host, _, far = redis_url.rpartition("@")[2].removeprefix("redis://").partition("/")[0].partition(":")
        self._far = (host, int(far))
        self._listener = socket.create_server(("127.0.0.1", port))
        self._lost = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> LosingProxy:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=target, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._far)
            self._start(self._pump, near, far, False)
            self._start(self._pump, far, near, True)

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        try:
            while piece := source.recv(65536):
                if answers and not self._lost and b"-" in piece and b"$" in piece:
                    self._lost = True
                    break
                target.sendall(piece)
        except OSError:
            pass
        for each in (source, target):
            _cut(each)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def test_a_full_redis_refuses_all_of_a_pipeline_and_takes_it_when_there_is_room(redis_url, client):
    limits = BufferLimits(pipeline_entries=50)
    try:
        with Producer(redis_url, limits=limits) as producer:
            producer.upsert("t", {"n": -1})
            producer.flush()
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 200_000)
            for number in range(500):
                producer.upsert("t", {"n": number, "filler": "x" * 2000})
            with pytest.raises(SourceUnavailable, match="out of memory") as caught:
                producer.flush(0.5)
            assert "maxmemory" in caught.value.hint
            assert producer.unsent_rows > 0
            client.config_set("maxmemory", 0)
    finally:
        client.config_set("maxmemory", 0)
    assert [json.loads(each["data"])["n"] for each in entries(client, "t")] == list(range(-1, 500))


def test_a_key_of_another_type_refuses_its_stream_only(redis_url, client):
    client.set("bad", "a string")
    with Producer(redis_url) as producer:
        for number in range(20):
            producer.upsert("bad" if number % 2 else "good", {"n": number})
        with pytest.raises(SourceRefused, match=r"10 changes.*another type.*stream bad"):
            producer.flush()
        assert client.xlen("good") == 10
        client.delete("bad")
        producer.flush()
    assert [json.loads(each["data"])["n"] for each in entries(client, "bad")] == list(range(1, 20, 2))


def test_a_missing_permission_is_named(redis_url, client):
    client.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-xadd"])
    try:
        producer = Producer(redis_url, username="limited", password="pw")
        producer.upsert("t", {"a": 1})
        with pytest.raises(SourceRefused, match=r"1 changes.*forbids.*xadd") as caught:
            producer.close()
        assert "+xadd" in caught.value.hint
    finally:
        client.acl_deluser("limited")


@pytest.mark.parametrize("password", [None, "wrong-pw"])
def test_a_refused_login_is_named_without_the_password(tmp_path, password):
    with Valkey(directory=tmp_path, password="right-pw") as server:
        login = f":{password}@" if password else ""
        producer = Producer(f"redis://{login}127.0.0.1:{server.port}")
        with pytest.raises(SourceRefused, match="login") as caught:
            producer.connect()
        producer.upsert("t", {"a": 1})
        with pytest.raises(SourceRefused, match="1 changes") as flushed:
            producer.close()
        assert "pw" not in str(caught.value) + str(flushed.value)
        with Producer(f"redis://127.0.0.1:{server.port}", password="right-pw") as right:
            right.connect()


def test_nobody_there_is_unavailable(free_port):
    producer = Producer(f"redis://127.0.0.1:{free_port}", limits=BufferLimits(rows_max=1, block_seconds=0.1))
    with pytest.raises(SourceUnavailable, match=f"{free_port}.*refused"):
        producer.connect()
    producer.upsert("t", {"a": 1})
    with pytest.raises(SourceUnavailable, match="not accepted"):
        producer.upsert("t", {"a": 2})
    with pytest.raises(SourceUnavailable, match="1 changes"):
        producer.close(0.1)


def test_something_else_on_that_port_is_recognised(free_port):
    with socket.create_server(("127.0.0.1", free_port)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        web = threading.Thread(target=answer)
        web.start()
        producer = Producer(f"redis://127.0.0.1:{free_port}")
        with pytest.raises(SourceUnavailable, match="does not speak Redis"):
            producer.connect()
        web.join()
        producer.close()


# ── the end of it ──


def test_an_error_in_the_block_still_sends_what_was_accepted(redis_url, client):
    with pytest.raises(ZeroDivisionError), Producer(redis_url) as producer:
        producer.upsert("t", {"a": 1})
        raise ZeroDivisionError
    assert client.xlen("t") == 1


def test_an_error_in_the_block_is_not_hidden_by_what_could_not_be_sent(redis_url, client):
    client.set("t", "a string")
    with pytest.raises(ZeroDivisionError) as caught, Producer(redis_url) as producer:
        producer.upsert("t", {"a": 1})
        raise ZeroDivisionError
    assert "1 changes" in caught.value.__notes__[0]


def test_a_block_that_could_not_be_sent_raises(redis_url, client):
    client.set("t", "a string")
    with pytest.raises(SourceRefused, match="1 changes"), Producer(redis_url) as producer:
        producer.upsert("t", {"a": 1})


def test_a_collected_producer_sends_what_it_had(redis_url, client):
    producer = Producer(redis_url)
    producer.upsert("t", {"a": 1})
    del producer
    gc.collect()
    assert client.xlen("t") == 1


def test_a_collected_producer_says_what_it_lost(redis_url, client, caplog):
    client.set("t", "a string")
    producer = Producer(redis_url)
    producer.upsert("t", {"a": 1})
    with caplog.at_level(logging.ERROR):
        del producer
        gc.collect()
    assert [record.message for record in caplog.records] == ["changes_lost"]


def test_a_program_that_ends_without_closing_loses_nothing(redis_url, client, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom replicator import Producer\n"
        "producer = Producer(sys.argv[1])\n"
        "for number in range(2000):\n    producer.upsert('t', {'n': number})\n"
    )
    subprocess.run([sys.executable, str(program), redis_url], check=True, timeout=60)
    assert client.xlen("t") == 2000

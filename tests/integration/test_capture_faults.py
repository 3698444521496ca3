"""Redis behind a proxy that refuses, resets, cuts replies short or swallows them: each entry is logged once, in order."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.fakes import wait_until
from pipeline_room import PipelineRoom
from proxy import TcpProxy

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.service import Service


@pytest.fixture
def proxy(redis_server: Valkey) -> Iterator[TcpProxy]:
    assert redis_server.port is not None
    with TcpProxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def room(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str, proxy: TcpProxy
) -> PipelineRoom:
    host, port = proxy.address
    return PipelineRoom(
        directory=tmp_path,
        redis_url=f"redis://{host}:{port}/0",
        producers_redis_url=redis_url,
        clickhouse=clickhouse_server,
        database=clickhouse_database,
        endpoint=clickhouse_server.endpoint,
    )


def logged(service: Service, room: PipelineRoom) -> bool:
    return service.changelog.head >= room.added


def check(room: PipelineRoom) -> None:
    with room.file() as session:
        room.check_log(session)
        assert session.rows("select count(*) from rejected_entries") == [(0,)]
        assert session.rows("select count(*) from stream_gaps") == [(0,)]


@pytest.mark.parametrize("cut_after", [1, 37, 500, 4_000, 20_000])
def test_replies_cut_short_are_never_taken_for_whole(room: PipelineRoom, proxy: TcpProxy, cut_after: int) -> None:
    room.add(300)
    proxy.cut_after = cut_after
    with room.running() as service:
        wait_until(lambda: proxy.cuts >= 3)
        proxy.cut_after = None
        proxy.reset_all()
        wait_until(lambda: logged(service, room))
    check(room)


def test_resets_at_any_moment_lose_and_double_nothing(room: PipelineRoom, proxy: TcpProxy) -> None:
    with room.running() as service:
        for _ in range(25):
            room.add(40)
            proxy.reset_all()
        wait_until(lambda: logged(service, room))
    check(room)


def test_a_redis_that_is_away_for_a_while_is_waited_for_and_delivery_goes_on(
    room: PipelineRoom, proxy: TcpProxy
) -> None:
    room.add(50)
    with room.running() as service:
        wait_until(lambda: logged(service, room))
        proxy.refuse()
        wait_until(lambda: service.deliver.checkpoint >= 50)
        room.add(50)
        proxy.listen()
        wait_until(lambda: logged(service, room))
        room.wait_delivered(service)
    check(room)


def test_a_redis_that_answers_nothing_does_not_hold_up_the_stop(room: PipelineRoom, proxy: TcpProxy) -> None:
    room.add(50)
    with room.running() as service:
        wait_until(lambda: logged(service, room))
        proxy.silent = True
        room.add(50)
        started = time.monotonic()
        service.stop.set()
    assert time.monotonic() - started < 11
    proxy.silent = False
    proxy.reset_all()
    with room.running() as service:
        wait_until(lambda: logged(service, room))
    check(room)


def test_a_stream_that_does_not_exist_yet_is_waited_for(room: PipelineRoom) -> None:
    with room.running() as service:
        wait_until(lambda: service.progress.heartbeat_at and service.loops["capture"].running)
        room.add(10)
        wait_until(lambda: logged(service, room))
    check(room)


def test_reads_of_nothing_but_rejected_entries_move_the_position(room: PipelineRoom) -> None:
    for number in range(200):
        room.source.xadd("trades", {"data": f"{number}: no json"})
    with room.running() as service:
        wait_until(lambda: service.progress.entries_rejected == 200)
        room.source.xadd("trades", {"data": '{"n":0}'})
        wait_until(lambda: service.changelog.head == 1)
    with room.running() as service:
        wait_until(lambda: "trades" in service.progress.positions)
        assert service.progress.positions["trades"].entries_read == 201
    with room.file() as session:
        assert session.rows("select count(*), count(distinct entry_id) from rejected_entries") == [(200, 200)]


def test_an_entry_that_stops_decoding_does_not_exist(room: PipelineRoom) -> None:
    """What no rule foresaw is kept too: everything that is thrown at capture ends as a change or a rejection."""
    deep = '{"a":' + "[" * 3000 + "12345678901234567890" + "]" * 3000 + "}"
    for value in (deep, '{"a":%s}' % ("9" * 50_000), "\x00", '{"a":NaN}', "[]", '{"a":"\\ud800"}', "x" * 1_000_000):
        room.source.xadd("trades", {"data": value})
    room.source.xadd("trades", {"batch": os.urandom(500)})
    room.source.xadd("trades", {os.urandom(8): os.urandom(8)})
    room.source.xadd("trades", {"data": '{"last":1}'})
    with room.running() as service:
        wait_until(lambda: service.progress.entries_read == 10)
        room.wait_settled(service)
    with room.file() as session:
        room.check_sink(session)
        assert session.rows("select payload from change_log order by log_offset desc limit 1") == [('{"last":1}',)]


def test_large_payloads_come_through_within_bounded_memory(room: PipelineRoom) -> None:
    room.clickhouse_keys = ""  # on a busy machine ClickHouse may leave a large body unread for longer than two seconds
    room.configure()
    for number in range(3):
        room.source.xadd("trades", {"data": json.dumps({"n": number, "blob": os.urandom(25_000_000).hex()})})
    room.source.xadd("trades", {"data": '{"last":1}'})
    with room.running() as service:
        wait_until(lambda: service.changelog.head == 4, 120)
        room.wait_delivered(service, 120)
        session = service.database.session()
        for offset in (1, 2, 3):  # asked for together, once checkpointed they would need more than DuckDB may use
            found = session.rows("select strlen(payload) > 50_000_000 from change_log where log_offset = ?", [offset])
            assert found == [(True,)]
        sent = session.rows("select row_count from sync_batches order by first_offset")
        assert sent == [(1,), (1,), (2,)]  # two of them are more than a batch may hold
        session.close()
    assert len(room.physical()) == 4


def test_an_idle_service_takes_almost_no_time(room: PipelineRoom) -> None:
    room.add(10)
    with room.running() as service:
        room.wait_delivered(service)
        started, threads = time.process_time(), threading.active_count()
        time.sleep(2.0)  # the time that is measured
        spent = time.process_time() - started
    assert spent < 0.2, (spent, threads)

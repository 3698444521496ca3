"""An insert whose outcome is not known, over the real ClickHouse behind a proxy: never lost, never doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contract.fakes import wait_until
from pipeline_room import PipelineRoom
from proxy import Break, Delay, ErrorCode, Fault, HttpProxy, Request, Status

from replicator.deliver_lane import Circuit
from replicator.embedded.clickhouse import ClickHouse


@pytest.fixture
def proxy(clickhouse_server: ClickHouse) -> Iterator[HttpProxy]:
    with HttpProxy(clickhouse_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def room(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str, proxy: HttpProxy
) -> PipelineRoom:
    return PipelineRoom(
        directory=tmp_path,
        redis_url=redis_url,
        clickhouse=clickhouse_server,
        database=clickhouse_database,
        endpoint=proxy.url,
    )


def next_inserts(*faults: Fault, table: str = "change_log") -> Callable[[Request], Fault]:
    """The first inserts into a table meet these, one after another."""
    waiting = list(faults)
    return lambda request: waiting.pop(0) if request.inserts_into == table and waiting else None


FAULTS: list[Fault] = [
    *(fault for fault in Break if fault is not Break.HANG),
    Status(503),
    Status(502),
    Status(429),
    Delay(0.3),
    *(ErrorCode(code) for code in (159, 209, 319, 202, 210, 241, 252, 425, 999, 4242)),
]


@pytest.mark.parametrize("table", ["change_log", "replicator_batches"])
def test_whatever_an_insert_meets_the_rows_are_there_once(room: PipelineRoom, proxy: HttpProxy, table: str) -> None:
    with room.running() as service:
        session = service.database.session()
        for fault in FAULTS:
            proxy.rule = next_inserts(fault, table=table)
            room.add(5)
            room.wait_delivered(service)
            room.check_promise_three(session)
            try:
                room.check_sink(session)
                assert session.rows("select count(*) from failed_syncs") == [(0,)]
            except AssertionError as error:
                raise AssertionError(f"after {fault}") from error
        session.close()


def test_faults_one_after_another_on_the_same_insert_are_all_survived(room: PipelineRoom, proxy: HttpProxy) -> None:
    room.configure(sync="sync_interval_sec = 0.05\nmax_retry_attempts = 20")
    faults = (Break.RESET_AFTER, ErrorCode(159), Break.RESET_DURING, Status(503), Break.TRUNCATE, ErrorCode(319))
    proxy.rule = next_inserts(*faults)
    room.add(20)
    with room.running() as service:
        room.wait_delivered(service)
    with room.file() as session:
        room.check_sink(session)


def slow_down(room: PipelineRoom) -> None:
    """Each row takes a view 0.1 s: an insert of twenty rows runs for two seconds."""
    room.clickhouse.execute(
        f"create table {room.database}.slow (n Int64) engine = MergeTree order by () "
        "settings non_replicated_deduplication_window = 100"
    )
    room.clickhouse.execute(
        f"create materialized view {room.database}.slowly to {room.database}.slow as "
        f"select log_offset + sleepEachRow(0.1) as n from {room.database}.change_log"
    )


@pytest.mark.parametrize("restart", [False, True], ids=["the same process", "after a restart"])
def test_an_insert_that_still_runs_when_we_ask_is_waited_for(
    room: PipelineRoom, proxy: HttpProxy, restart: bool
) -> None:
    with room.running() as service:
        wait_until(lambda: bool(service.deliver.lanes))  # the tables are made
    slow_down(room)
    proxy.rule = next_inserts(Break.RESET_DURING)
    room.add(20)
    with room.running() as service:
        wait_until(lambda: proxy.seen.get("change_log", 0) >= 1)
        if not restart:
            room.wait_delivered(service)
    if restart:
        with room.running() as service:
            room.wait_delivered(service)
    with room.file() as session:
        room.check_sink(session)
    assert len(room.physical("slow", "n")) == 20
    assert proxy.seen["change_log"] <= 2


def test_an_outage_parks_one_batch_and_everything_comes_back_by_itself(room: PipelineRoom, proxy: HttpProxy) -> None:
    room.add(50)
    with room.running() as service:
        session = service.database.session()
        room.wait_delivered(service)
        proxy.refuse()
        for _ in range(8):
            room.add(400)
            room.check_promise_three(session)
        wait_until(lambda: service.changelog.head == room.added)
        wait_until(lambda: service.deliver.lanes["change_log"].circuit is Circuit.OPEN)
        wait_until(lambda: service.deliver.lanes["change_log"].redrives)
        room.check_promise_three(session)
        assert session.rows("select count(*) from failed_syncs where status = 'open'") == [(1,)]
        assert service.deliver.checkpoint < service.changelog.head
        proxy.listen()
        room.wait_delivered(service)
        room.check_promise_three(session)
        room.check_sink(session)
        assert session.rows("select status, reason, count(*) from failed_syncs group by all") == [
            ("resolved", "outage", 1)
        ]
        session.close()


@pytest.mark.parametrize("code", [60, 16, 47, 81, 516, 497])
def test_a_wrong_shape_or_a_refused_login_parks_nothing_and_heals(
    room: PipelineRoom, proxy: HttpProxy, code: int
) -> None:
    proxy.rule = lambda request: ErrorCode(code) if request.inserts_into == "change_log" else None
    room.add(20)
    with room.running() as service:
        wait_until(lambda: service.deliver.lanes and service.deliver.lanes["change_log"].stopped_reason)
        assert str(code) in service.deliver.lanes["change_log"].stopped_reason
        proxy.rule = lambda request: None
        room.wait_delivered(service)
        session = service.database.session()
        room.check_sink(session)
        assert session.rows("select count(*) from failed_syncs") == [(0,)]
        session.close()


def test_a_hanging_insert_does_not_hold_up_the_stop_and_is_settled_at_the_next_start(
    room: PipelineRoom, proxy: HttpProxy
) -> None:
    proxy.rule = next_inserts(Break.HANG)
    room.add(20)
    with room.running():
        wait_until(lambda: proxy.seen.get("change_log", 0) == 1)
    proxy.release()  # now it goes through, after the service has ended
    with room.running() as service:
        room.wait_delivered(service)
    with room.file() as session:
        room.check_sink(session)

"""Rows that ClickHouse refuses, over the real engine: found in few inserts, parked with a copy; a view's fault is not theirs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from contract.fakes import wait_until
from pipeline_room import PipelineRoom
from proxy import ErrorCode, Fault, HttpProxy, Request

from replicator import Producer
from replicator.embedded.clickhouse import ClickHouse

ORDERS = """
[[tables]]
name = "orders"
stream = "orders"
key = ["order_id"]
[tables.columns]
order_id = "VARCHAR"
quantity = "BIGINT"
"""


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
        streams=("trades", "orders"),
        tables=ORDERS,
        batch_size=2000,
    )


def refuse_poison(code: int) -> object:
    def rule(request: Request) -> Fault:
        return ErrorCode(code) if request.inserts_into == "change_log" and b"poison" in request.body else None

    return rule


def refuse_in_earnest(room: PipelineRoom) -> None:
    room.clickhouse.execute(
        f"alter table {room.database}.change_log add constraint c check position(assumeNotNull(payload), 'poison') = 0"
    )


def parked(room: PipelineRoom, poison: set[int], code: str) -> None:
    with room.file() as session:
        assert {o for (o,) in session.rows("select first_offset from failed_syncs")} == poison
        assert set(session.rows("select distinct reason, status, row_count, error_code from failed_syncs")) == {
            ("rejected", "open", 1, code)
        }
        assert {o for (o,) in session.rows("select log_offset from parked_changes")} == poison
        room.check_promise_three(session)
        room.check_sink(session, poison)


@pytest.mark.parametrize("code", [53, 469])
def test_one_bad_row_in_a_thousand_costs_a_logarithm_of_inserts(
    room: PipelineRoom, proxy: HttpProxy, code: int
) -> None:
    proxy.rule = refuse_poison(code)  # type: ignore[assignment]
    room.add(612)
    room.add(1, mark="poison")
    room.add(411)
    with room.running() as service:
        room.wait_delivered(service)
        batches = service.database.session().rows("select count(*) from sync_batches")[0][0]
    parked(room, {613}, str(code))
    assert proxy.seen["change_log"] <= batches + 2 * math.log2(1024) + 1


def test_one_bad_row_in_a_hundred_thousand_costs_a_logarithm_of_inserts(room: PipelineRoom, proxy: HttpProxy) -> None:
    rows, bad = 100_000, 61_803
    room.batch_size = rows
    room.configure()
    with room.running() as service:
        wait_until(lambda: service.deliver.lanes)
        refuse_in_earnest(room)
        marks = ["poison" if n == bad else "" for n in range(1, rows + 1)]
        with Producer(room.redis_url) as producer:
            producer.send_batch("trades", pa.table({"n": range(1, rows + 1), "mark": marks}))
        room.wait_delivered(service, 90)
        wait_until(lambda: service.deliver.checkpoint == rows, 90)
        session = service.database.session()
        assert session.rows("select first_offset, last_offset, row_count, reason from failed_syncs") == [
            (bad, bad, 1, "rejected")
        ]
        assert session.rows("select log_offset from parked_changes") == [(bad,)]
        room.check_promise_three(session)
        session.close()
    assert room.sink_rows("select count(), uniqExact(log_offset), sum(log_offset) from {db}.change_log") == [
        [rows - 1, rows - 1, rows * (rows + 1) // 2 - bad]
    ]
    batches = 4  # at most: what was read before the whole entry was
    assert proxy.seen["change_log"] <= batches + 2 * math.log2(rows) + 1


def test_one_bad_row_in_ten_leaves_the_nine(room: PipelineRoom, proxy: HttpProxy) -> None:
    proxy.rule = refuse_poison(469)  # type: ignore[assignment]
    for number in range(100):
        room.add(1, mark="poison" if number % 10 == 4 else "")
    with room.running() as service:
        room.wait_delivered(service)
    parked(room, {number + 1 for number in range(100) if number % 10 == 4}, "469")
    assert proxy.seen["change_log"] <= 100 + 10 * 2 * math.log2(128)


def test_a_constraint_of_the_table_itself_is_found_out(room: PipelineRoom) -> None:
    with room.running() as service:
        wait_until(lambda: service.deliver.lanes)
        refuse_in_earnest(room)
        room.add(30)
        room.add(2, mark="poison")
        room.add(30)
        room.wait_delivered(service)
        messages = service.database.session().rows("select distinct error_message from failed_syncs")
    parked(room, {31, 32}, "469")
    assert "Constraint `c`" in messages[0][0]
    assert '"mark"' not in messages[0][0], "no row's values in messages"


def test_a_view_that_throws_stops_its_table_parks_nothing_and_is_completed_when_it_is_mended(
    room: PipelineRoom,
) -> None:
    def add_orders(first: int, last: int) -> None:
        for number in range(first, last):
            room.source.xadd("orders", {"data": json.dumps({"order_id": f"O{number}", "quantity": number})})

    with room.running() as service:
        add_orders(0, 10)
        room.wait_delivered(service)
        for name in ("a", "z"):  # one before ours, one behind
            room.clickhouse.execute(f"create table {room.database}.{name} (n Int64) engine = MergeTree order by ()")
            room.clickhouse.execute(
                f"create materialized view {room.database}.{name}_throws to {room.database}.{name} as "
                f"select throwIf(_offset > 0) as n from {room.database}.orders_log"
            )
        add_orders(10, 20)
        wait_until(lambda: service.deliver.lanes["orders"].stopped_reason)
        room.add(5)
        wait_until(lambda: len(room.physical()) == 5)
        session = service.database.session()
        assert session.rows("select count(*) from failed_syncs") == [(0,)]
        room.check_promise_three(session)
        session.close()
        for name in ("a", "z"):
            room.clickhouse.execute(f"drop view {room.database}.{name}_throws")
        room.wait_delivered(service)
    assert room.physical("orders_log", "_offset") == [o for (o,) in _orders(room)]
    assert room.sink_rows("select count(), sum(quantity) from {db}.orders") == [[20, 190]]


def _orders(room: PipelineRoom) -> list[tuple[int]]:
    with room.file() as session:
        return [
            (o,) for (o,) in session.rows("select log_offset from change_log where table_name = 'orders' order by 1")
        ]

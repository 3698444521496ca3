"""The comparison that the storms end with bites: what is taken away, doubled or altered behind the service is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from findings import Findings, compare
from pipeline_room import PipelineRoom
from storm_room import ORDERS, audit, settle

from ops.soak.outage import too_many_parked
from ops.soak.report import MISMATCH, Report, close
from replicator.embedded.clickhouse import ClickHouse

IN_SINK: dict[str, tuple[str, Callable[[Findings], bool]]] = {
    "lost": ("delete from {db}.change_log where log_offset = 3", lambda f: "offset 3" in f.lost[0]),
    "altered": (
        "alter table {db}.change_log update payload = 'x' where log_offset = 4 settings mutations_sync = 1",
        lambda f: "4 differs" in f.wrong[0],
    ),
    "sent twice": (
        "insert into {db}.change_log select * replace (_send + 1 as _send) from {db}.change_log where log_offset = 5",
        lambda f: f.physical_duplicates == 1 and "1 rows of 5..5 under" in f.sent_twice[0] and f.clean,
    ),
    "doubled under one send": (
        "insert into {db}.change_log select * from {db}.change_log where log_offset = 5 "
        "settings deduplicate_insert = 'disable'",
        lambda f: f.physical_duplicates == 1 and "rows of 5..5" in f.doubled[0],
    ),
    "doubled under FINAL": (
        "insert into {db}.change_log select * replace ('other' as _pipeline) from {db}.change_log where log_offset = 5",
        lambda f: "change_log" in f.doubled[0],
    ),
    "current rows": ("truncate table {db}.orders_state", lambda f: "orders in ClickHouse" in f.wrong[0]),
}
IN_LOG = {
    "lost": ("delete from change_log where log_offset = 10", lambda f: f.lost and f.wrong),
    "doubled": (
        "insert into change_log select * replace (999 as log_offset) from change_log where log_offset = 1",
        lambda f: "in the log 2 times" in f.doubled[0],
    ),
}


@pytest.fixture
def room(tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str) -> PipelineRoom:
    room = PipelineRoom(
        directory=tmp_path,
        redis_url=redis_url,
        clickhouse=clickhouse_server,
        database=clickhouse_database,
        endpoint=clickhouse_server.endpoint,
        streams=("trades", "orders"),
        tables=ORDERS,
    )
    room.add(10)
    for number in range(5):
        room.source.xadd("orders", {"data": json.dumps({"order_id": f"O{number}", "quantity": 1, "price": "0.25"})})
    settle(room)
    audit(room)
    return room


def test_what_is_done_behind_the_back_of_the_service_is_found(room: PipelineRoom) -> None:
    assert compare(room, ["1-1"]).lost == ["1-1 was acknowledged and is not in Redis"]
    for what, (statement, found) in IN_SINK.items():
        # a copy is put back after each, so that every one is looked for on its own
        table = "orders_state" if "orders_state" in statement else "change_log"
        room.clickhouse.execute(f"create table {room.database}.kept as {room.database}.{table}")
        room.clickhouse.execute(f"insert into {room.database}.kept select * from {room.database}.{table}")
        room.clickhouse.execute(statement.format(db=room.database))
        findings = compare(room)
        assert found(findings), (what, findings)
        room.clickhouse.execute(f"exchange tables {room.database}.kept and {room.database}.{table}")
        room.clickhouse.execute(f"drop table {room.database}.kept sync")
        audit(room)


@pytest.mark.parametrize("what", IN_LOG)
def test_what_is_done_to_the_log_is_found(room: PipelineRoom, what: str) -> None:
    statement, found = IN_LOG[what]
    with room.file() as session:
        session.execute(statement)
    findings = compare(room)
    assert found(findings), findings


def test_a_soak_that_finds_anything_ends_with_four_and_names_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(soak="storm", seed=7, engines={})
    report.take(Findings(entries=3), 7)
    assert close(report, True) == 0
    report.take(Findings(entries=3, lost=["trades 1-1 is not in the log"]), 8)
    capsys.readouterr()
    assert close(report, True) == MISMATCH
    figures = json.loads(capsys.readouterr().out)
    assert figures["lost"] == 1 and figures["entries"] == 6
    assert figures["at_fault"] == ["trades 1-1 is not in the log (seed 8)"]


def test_an_outage_that_parks_more_than_one_batch_of_a_table_is_found() -> None:
    assert too_many_parked({"trades": 1}) == too_many_parked({}) == []
    assert too_many_parked({"trades": 1, "orders": 2}) == ["orders: 2 batches parked by one outage"]

"""Every fault of ClickHouse, shorter and longer than the ladder, on one table and on all, over the real engines.

What must hold each time: which ranges were parked and why, what came back by itself, that the other table was not
delayed, and that both ends are equal at the end, physically. One service lives through all of it.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest
from attrs import define, evolve, field, frozen
from contract.fakes import wait_until
from pipeline_room import PipelineRoom
from proxy import Break, ErrorCode, Fault, HttpProxy, Request, Status
from storm_room import ORDERS

from replicator.database import Session
from replicator.deliver_lane import Circuit, LaneState
from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.operations import Operations, Selection
from replicator.service import Service

ROWS = 4
PATIENCE_SECONDS = 100
RETRIES = 3
REFUSED, NO_TLS, NO_NAME = "refused", "no TLS", "no such name"
NOWHERE = (REFUSED, NO_TLS, NO_NAME)
"""Nobody listens, nobody speaks TLS there, the name means nothing: never a fault of one table."""


class Ends(Enum):
    """What becomes of a batch that meets a fault for longer than the ladder."""

    PARKED = "parked"
    """As an outage: it comes back by itself."""
    DONE = "done"
    """The insert was done and only its answer was lost: asking finds that out, where asking is possible."""
    STOPPED = "stopped"
    """Nothing is parked, the table waits, and goes on when it is mended."""
    ROW_BY_ROW = "row by row"
    """Each row is refused and parked; they come back when an operator says so."""


@frozen
class Mode:
    fault: Fault | str
    ends: Ends

    def __str__(self) -> str:
        return getattr(self.fault, "value", None) or str(self.fault).replace("message='made for a test'", "")


MODES = [
    *(Mode(fault, Ends.PARKED) for fault in NOWHERE),
    Mode(Break.HANG, Ends.PARKED),
    Mode(Break.RESET_BEFORE, Ends.PARKED),
    Mode(Break.GARBAGE, Ends.PARKED),
    *(Mode(Status(code), Ends.PARKED) for code in (502, 503)),
    *(Mode(ErrorCode(code), Ends.PARKED) for code in (159, 202, 209, 210, 241, 252, 425)),
    *(Mode(fault, Ends.DONE) for fault in (Break.RESET_DURING, Break.RESET_AFTER, Break.TRUNCATE)),
    *(Mode(ErrorCode(code), Ends.STOPPED) for code in (60, 16, 516, 497)),
    *(Mode(ErrorCode(code), Ends.ROW_BY_ROW) for code in (53, 469, 4242)),
]


@define
class Scene:
    """The service behind its proxy, and what it parked in the case at hand."""

    room: PipelineRoom
    proxy: HttpProxy
    service: Service
    session: Session
    seen_id: int = 0
    _number: int = 0
    _met: dict[str, int] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def add(self) -> None:
        """Rows for both tables, in one transaction, so that they are read and cut together."""
        pipe = self.room.source.pipeline(transaction=True)
        for _ in range(ROWS):
            self._number += 1
            pipe.xadd("trades", {"data": json.dumps({"n": self._number})})
            order = {"order_id": f"O{self._number}", "quantity": self._number, "price": "1.25"}
            pipe.xadd("orders", {"data": json.dumps(order)})
        pipe.execute()

    def spoil(self, fault: Fault | str, every: bool, times: int | None, whole: bool) -> None:
        """The inserts of one table, or of both, meet a fault so often, or (None) until `mend`; ``whole``: all requests."""
        self._met = {}
        if fault == REFUSED:
            self.proxy.refuse()
        elif fault == NO_TLS:
            self._send_to(self.proxy.url.replace("http:", "https:"))
        elif fault == NO_NAME:
            self._send_to("http://no-such-host.invalid:8123")
        if fault in NOWHERE:
            return

        def rule(request: Request) -> Fault:
            table = request.inserts_into.rpartition(".")[2]
            if not (whole or table == "change_log" or (every and table == "orders_log")):
                return None
            with self._lock:
                self._met[table] = self._met.get(table, 0) + 1
                return fault if times is None or self._met[table] <= times else None  # type: ignore[return-value]

        self.proxy.rule = rule

    def _send_to(self, endpoint: str) -> None:
        sink = self.service.sink
        if sink.options.endpoint != endpoint:
            sink.options = evolve(sink.options, endpoint=endpoint)
            sink.close()

    def mend(self) -> None:
        self._send_to(self.proxy.url)
        self.proxy.rule = lambda _: None
        self.proxy.listen()
        self.proxy.release()
        wait_until(lambda: self.proxy.held == 0, PATIENCE_SECONDS)

    def lane(self, name: str) -> LaneState:
        return self.service.deliver.lanes[name]

    def parked(self) -> list[tuple[str, str, str, int]]:
        """(table, reason, status, rows) of what this case parked."""
        sql = "select table_name, reason, status, row_count from failed_syncs where id > ? order by id"
        return self.session.rows(sql, [self.seen_id])

    def begin(self) -> None:
        """Everything is well, whatever an earlier case left behind."""
        self.mend()
        if self.session.rows("select 1 from failed_syncs where status = 'open' and reason = 'rejected' limit 1"):
            self.retry()
        self.room.wait_delivered(self.service, PATIENCE_SECONDS)
        self.seen_id = self.session.rows("select coalesce(max(id), 0) from failed_syncs")[0][0]

    def retry(self) -> None:
        """What an operator does about rejected rows once the table is mended."""
        parts = {"database": self.service.database, "controls": self.service.controls, "ledger": self.service.ledger}
        operations = Operations(**parts, deliver=self.service.deliver)  # type: ignore[arg-type]
        operations.failed_retry(Selection(all=True), actor="an operator")

    def wait_equal(self, mode: Mode) -> None:
        """Everything that is in Redis is logged and in ClickHouse, once, physically."""
        self.room.wait_delivered(self.service, PATIENCE_SECONDS)
        if mode.fault is Break.HANG:
            # what hung goes through now, behind a redrive that had to use a number of its own: FINAL shows one of them
            for table in ("change_log", "orders_log"):
                self.room.clickhouse.execute(f"optimize table {self.room.database}.{table} final")
        self.room.check_promise_three(self.session)
        self.room.check_sink(self.session)
        orders = "select log_offset from change_log where table_name = 'orders' order by 1"
        assert self.room.physical("orders_log", "_offset") == [o for (o,) in self.session.rows(orders)]
        assert self.room.sink_rows("select count() from {db}.orders") == [[self._number]]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, _valkey: Valkey, _clickhouse: ClickHouse) -> Iterator[Scene]:
    _valkey.start()
    database = f"test_{uuid.uuid4().hex[:12]}"
    _clickhouse.start().execute(f"create database {database}")
    with HttpProxy(_clickhouse.endpoint) as proxy:
        room = PipelineRoom(
            directory=tmp_path_factory.mktemp("matrix"),
            redis_url=_valkey.url,
            clickhouse=_clickhouse,
            database=database,
            endpoint=proxy.url,
            streams=("trades", "orders"),
            tables=ORDERS,
            sync=f"sync_interval_sec = 0.02\nmax_retry_attempts = {RETRIES}",
            ladder="retry_backoff_sec = [0.01, 0.02, 0.05]",
            clickhouse_keys="connect_timeout_sec = 2\ninsert_timeout_sec = 2",
        )
        room.source.flushall()
        with room.running() as service:
            scene = Scene(room, proxy, service, service.database.session())
            scene.add()
            scene.begin()
            yield scene
            scene.session.close()
    _clickhouse.execute(f"drop database if exists {database} sync")


@pytest.fixture(autouse=True)
def begun(scene: Scene) -> None:
    scene.begin()


def cases(modes: list[Mode]) -> list[Any]:
    """Each mode on one table and on all; that nobody listens is no fault of one table."""
    pairs = [(mode, every) for every in (False, True) for mode in modes if every or mode.fault not in NOWHERE]
    return [pytest.param(mode, every, id=f"{mode}-{'all' if every else 'one table'}") for mode, every in pairs]


@pytest.mark.parametrize(("mode", "every"), cases([mode for mode in MODES if mode.fault not in NOWHERE]))
def test_a_fault_shorter_than_the_ladder_parks_nothing(scene: Scene, mode: Mode, every: bool) -> None:
    scene.spoil(mode.fault, every, times=RETRIES - 1, whole=False)
    scene.add()
    if mode.fault is Break.HANG:
        wait_until(lambda: scene.lane("change_log").retries > 0)
    scene.room.wait_delivered(scene.service, PATIENCE_SECONDS)
    scene.mend()  # what hung arrives now, before it is counted: after a send that had to use a new number it is double
    scene.wait_equal(mode)
    assert scene.parked() == []


@pytest.mark.parametrize(("mode", "every"), cases(MODES))
def test_a_fault_longer_than_the_ladder(scene: Scene, mode: Mode, every: bool) -> None:
    ASSERTIONS[mode.ends](scene, mode, every)
    scene.mend()
    scene.wait_equal(mode)


def hit(every: bool) -> list[str]:
    return ["change_log", "orders"] if every else ["change_log"]


def parked_as_an_outage(scene: Scene, mode: Mode, every: bool) -> None:
    scene.spoil(mode.fault, every, times=None, whole=every)
    scene.add()
    lanes = [scene.lane(lane) for lane in hit(every)]
    wait_until(lambda: all(lane.circuit is Circuit.OPEN and lane.redrives for lane in lanes), PATIENCE_SECONDS)
    for _ in range(2):
        scene.add()
    wait_until(lambda: scene.service.changelog.head == 2 * scene._number, PATIENCE_SECONDS)  # capture goes on
    assert sorted(scene.parked()) == [(lane, "outage", "open", ROWS) for lane in hit(every)]
    scene.room.check_promise_three(scene.session)
    assert scene.service.deliver.checkpoint < scene.service.changelog.head
    if not every:
        the_other_table_goes_on(scene)
    scene.mend()
    back = [(lane, "outage", "resolved", ROWS) for lane in hit(every)]
    wait_until(lambda: sorted(scene.parked()) == back, PATIENCE_SECONDS)


def done_all_the_same(scene: Scene, mode: Mode, every: bool) -> None:
    if every:  # nor can it be asked
        parked_as_an_outage(scene, mode, every)
        return
    scene.spoil(mode.fault, every, times=None, whole=False)
    for _ in range(3):
        scene.add()
    scene.room.wait_delivered(scene.service, PATIENCE_SECONDS)
    assert scene.parked() == []


def stopped(scene: Scene, mode: Mode, every: bool) -> None:
    assert isinstance(mode.fault, ErrorCode)
    code = mode.fault.code
    scene.spoil(mode.fault, every, times=None, whole=False)
    scene.add()
    lanes = [scene.lane(lane) for lane in hit(every)]
    wait_until(lambda: all(str(code) in lane.stopped_reason for lane in lanes), PATIENCE_SECONDS)
    if not every:
        the_other_table_goes_on(scene)
    assert scene.parked() == []


def parked_row_by_row(scene: Scene, mode: Mode, every: bool) -> None:
    scene.spoil(mode.fault, every, times=None, whole=False)
    scene.add()
    expected = sorted((lane, "rejected", "open", 1) for lane in hit(every) for _ in range(ROWS))
    wait_until(lambda: sorted(scene.parked()) == expected, PATIENCE_SECONDS)
    scene.room.check_promise_three(scene.session)
    if not every:
        the_other_table_goes_on(scene)
    scene.mend()
    scene.retry()
    wait_until(lambda: {status for _, _, status, _ in scene.parked()} == {"resolved"}, PATIENCE_SECONDS)


def the_other_table_goes_on(scene: Scene) -> None:
    wait_until(lambda: len(scene.room.physical("orders_log", "_offset")) == scene._number, PATIENCE_SECONDS)


ASSERTIONS: dict[Ends, Callable[[Scene, Mode, bool], None]] = {
    Ends.PARKED: parked_as_an_outage,
    Ends.DONE: done_all_the_same,
    Ends.STOPPED: stopped,
    Ends.ROW_BY_ROW: parked_row_by_row,
}

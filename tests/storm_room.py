"""A producer that never stops, a service that is killed again and again, and engines that are killed beside it."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import redis
from attrs import define, field
from contract.fakes import wait_until
from findings import Findings, compare
from pipeline_room import PipelineRoom

UNDER_WAY = (
    "append.before_commit",
    "append.after_commit",
    "publish.after",
    "freeze.after",
    "send.after",
    "ledger.before",
    "ledger.after",
    "checkpoint.before",
    "checkpoint.after",
)
"""Failpoints that traffic reaches by itself."""
KEYS = 40
ORDERS = """
[[tables]]
name = "orders"
stream = "orders"
key = ["order_id"]
[tables.columns]
order_id = "VARCHAR"
quantity = "BIGINT"
price = "DECIMAL(18,2)"
"""


@define
class Producer:
    """Adds trades (undeclared) and orders (declared: creates, updates, deletes) until it is told to stop.

    An entry whose answer was lost may be in Redis or not: what is compared is what Redis has.
    """

    room: PipelineRoom
    poison: int = 0
    """How many trades are marked as what ClickHouse will refuse: one in ``poison_every``, from the first."""
    poison_every: int = 10
    acknowledged: list[str] = field(factory=list)
    """The ids of the entries that Redis answered for."""
    _stop: threading.Event = field(factory=threading.Event)
    _random: random.Random = field(factory=lambda: random.Random(7))

    @contextmanager
    def adding(self) -> Iterator[None]:
        thread = threading.Thread(target=self._add, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(10)

    def _add(self) -> None:
        number = 0
        while not self._stop.wait(0.01):
            number += 1
            with contextlib.suppress(redis.RedisError):  # it is down; producers go on trying
                self.acknowledged += self._add_some(number)

    def _add_some(self, number: int) -> list[str]:
        poisoned = number % self.poison_every == self.poison_every // 2 and number < self.poison_every * self.poison
        mark = "poison" if poisoned else ""
        pipe = self.room.source.pipeline(transaction=False)
        pipe.xadd("trades", {"data": json.dumps({"n": number, "mark": mark})})
        key = f"O{self._random.randrange(KEYS)}"
        if self._random.random() < 0.2:
            pipe.xadd("orders", {"op": "d", "data": json.dumps({"order_id": key})})
        else:
            pipe.xadd("orders", {"data": json.dumps({"order_id": key, "quantity": number, "price": f"{number}.25"})})
        return [entry_id.decode() for entry_id in pipe.execute()]


def killed(process: BaseProcess, seconds: float) -> bool:
    """Wait for a child to be killed by its failpoint; kill it when time is up. Whether it died by itself."""
    process.join(seconds)
    by_itself = process.exitcode is not None
    if not by_itself:
        process.kill()
        process.join(10)
    assert process.exitcode == -signal.SIGKILL, f"the service ended with {process.exitcode} instead of being killed"
    return by_itself


def settle(room: PipelineRoom, seconds: float = 60) -> None:
    """Run the service without faults until all that is in Redis is in ClickHouse, and stop it in order."""
    with room.running() as service:
        room.wait_delivered(service, seconds)


def audit(room: PipelineRoom, parked: set[int] | None = None, *, sink_killed: bool = False) -> Findings:
    """Producer, log and sink agree: count, order, content, physical rows, ledger, and current rows by an own fold.

    ``sink_killed``: while it took an insert, perhaps between the part of a log table and that of its state table. Such a
    batch has to be sent anew, and stands there twice until it is merged.
    """
    found = compare(room)
    assert found.clean, found
    assert sink_killed or found.physical_duplicates == 0, found.sent_twice
    with room.file() as session:
        assert {o for (o,) in session.rows("select log_offset from parked_changes")} == (parked or set())
        read = dict(session.rows("select stream, entries_read from stream_positions"))
    assert read == {stream: room.source.xlen(stream) for stream in room.streams}
    return found


def check_between(room: PipelineRoom) -> None:
    """Promise 3 in what a killed service left behind."""
    if room.path.exists():
        with room.file() as session:
            if session.rows("select 1 from duckdb_tables() where table_name = 'checkpoints'"):
                room.check_promise_three(session)


@define
class EngineKiller:
    """Kills ClickHouse and Valkey at random moments, alone and together, and starts them again."""

    room: PipelineRoom
    valkey: object
    random: random.Random
    killed: list[str] = field(factory=list)

    def once(self) -> None:
        which = self.random.choice(["clickhouse", "valkey", "both"])
        self.killed.append(which)
        engines = {"clickhouse": [self.room.clickhouse], "valkey": [self.valkey]}
        engines["both"] = [*engines["clickhouse"], *engines["valkey"]]
        for engine in engines[which]:
            engine.kill()
        time.sleep(self.random.random() * 0.5)  # how long it is down is part of the storm
        for engine in engines[which]:
            engine.start()


def wait_for_traffic(room: PipelineRoom, more: int) -> None:
    """Until the streams have grown by so many entries."""

    def length() -> int:
        with contextlib.suppress(redis.RedisError):
            return room.source.xlen("trades")
        return 0

    start = length()
    wait_until(lambda: length() >= start + more)

"""A ClickHouse in memory, for tests of deliver that must be quick and repeatable, and for the simulation.

It keeps what matters for exactly-once: parts and their sends, tokens within a window, the ledger, what still runs, the
state that a view feeds, uptime. `tests/contract` runs one suite on it and on the real engine. Faults come from
``meet``, asked at every insert.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import StrEnum
from typing import Any, TypeVar

import pyarrow as pa
from attrs import define, field, frozen

from replicator.deliver_work import boot_seconds
from replicator.errors import OutcomeUnknown, ReplicatorError, SinkMisshapen, SinkRejected, SinkUnavailable
from replicator.lanes import Lane
from replicator.model import Checksum, OffsetRange
from replicator.sink import LedgerRow, Send, ServerFacts, range_comment

LEDGER = "replicator_batches"
T = TypeVar("T")


class Fault(StrEnum):
    """What an insert meets."""

    REFUSED = "refused"
    """The connection is not made: nothing happens."""
    OVERLOADED = "overloaded"
    """An error code says: not now. Nothing happened."""
    LOST_BEFORE = "lost_before"
    """The connection breaks, the insert never ran."""
    LOST_AFTER = "lost_after"
    """The connection breaks, the insert is done."""
    STILL_RUNS = "still_runs"
    """The connection breaks, and the insert goes on until `FakeClickHouse.finish` lets it end."""
    DIES_AFTER_TOKEN = "dies_after_token"
    """The server dies when the token is on disk and the rows are not."""
    DIES_AFTER_ROWS = "dies_after_rows"
    """The server dies when the rows are on disk and the answer is not sent."""


@frozen(kw_only=True, eq=False)
class Part:
    """The rows of one insert."""

    offsets: tuple[int, ...]
    range: OffsetRange
    checksum: Checksum
    send: int
    table: pa.Table


@define(eq=False)
class FakeClickHouse:
    """The server and the client's end of it in one."""

    clock: Callable[[], float] = boot_seconds
    window: int = 10_000
    tables: tuple[str, ...] | None = None
    """The log tables there are; None: whichever is asked for."""
    meet: Callable[[str, Send | None], Fault | ReplicatorError | None] = lambda table, send: None
    refuses: Callable[[int], bool] = lambda offset: False
    """A constraint on rows, by their offset."""
    ask_fails: ReplicatorError | None = None
    """What comes of asking anything; inserts go on."""
    view_throws: bool = False
    parts: dict[str, list[Part]] = field(factory=dict)
    tokens: dict[str, deque[str]] = field(factory=dict)
    state: dict[str, dict[str, int]] = field(factory=dict)
    ledger: dict[tuple[str, str, int, int], LedgerRow] = field(factory=dict)
    up: bool = True
    inserts: int = 0
    """Inserts that reached the server, refused ones too."""
    _running: list[tuple[Send, pa.Table]] = field(factory=list)
    _started_at: float = field(init=False)
    _numbers: Any = field(factory=itertools.count)

    def __attrs_post_init__(self) -> None:
        self._started_at = self.clock() - 3600

    # ── what a test does to it ──

    def kill(self) -> None:
        """What was running is gone; parts, tokens and the ledger stay."""
        self.up = False
        self._running.clear()

    def start(self) -> None:
        if not self.up:
            self.up, self._started_at = True, self.clock()

    def finish(self) -> None:
        """Inserts that still run come to their end."""
        running, self._running = self._running, []
        for send, table in running:
            self._apply(send, table)

    def physical(self, table: str) -> list[tuple[int, int]]:
        """(offset, send) of every row, without FINAL."""
        return sorted((o, part.send) for part in self.parts.get(table, ()) for o in part.offsets)

    # ── the Sink that deliver sees ──

    def insert(self, send: Send, batch: pa.Table) -> str:
        fault = self._meets(send.target, send)
        if fault in (Fault.LOST_AFTER, Fault.DIES_AFTER_ROWS):
            self._apply(send, batch)
        elif fault is Fault.STILL_RUNS:
            self._running.append((send, batch))
        elif fault is Fault.DIES_AFTER_TOKEN:
            self._remember(send)
        if fault in (Fault.DIES_AFTER_TOKEN, Fault.DIES_AFTER_ROWS):
            self.kill()
        if fault is not None:
            raise OutcomeUnknown(f"insert: {fault}")
        self._apply(send, batch)
        return f"query-{next(self._numbers)}"

    def record(self, rows: Sequence[LedgerRow]) -> None:
        fault = self._meets(LEDGER, None)
        if fault in (None, Fault.LOST_AFTER, Fault.DIES_AFTER_ROWS):
            for row in rows:
                self.ledger[row.pipeline, row.table_name, row.first_offset, row.last_offset] = row
        if fault in (Fault.DIES_AFTER_TOKEN, Fault.DIES_AFTER_ROWS):
            self.kill()
        if fault is not None:
            raise OutcomeUnknown(f"ledger: {fault}")

    def running(self, pipeline: str, target: str, offsets: OffsetRange) -> int:
        self._asked()
        prefix = range_comment(pipeline, target, offsets)
        return sum(send.comment.startswith(prefix) for send, _ in self._running)

    def held(self, lane: Lane, pipeline: str, offsets: OffsetRange) -> Checksum:
        self._asked()
        rows = total = xor = 0
        for part in self._newest(lane.target, offsets):
            rows, total, xor = rows + part.checksum.rows, total + part.checksum.sum, xor ^ part.checksum.xor
        return Checksum(rows=rows, sum=total % (1 << 64), xor=xor)

    def keys_behind(self, lane: Lane, pipeline: str, offsets: OffsetRange) -> int:
        self._asked()
        if not lane.state_check:
            return 0
        state, last = self.state.get(lane.target, {}), {}
        for part in self._newest(lane.target, offsets):
            last |= _last_versions(part.table)
        return sum(state.get(key, 0) < version for key, version in last.items())

    def rows_of_send(self, lane: Lane, pipeline: str, offsets: OffsetRange, send: int) -> int:
        self._asked()
        return sum(offsets.first <= o <= offsets.last and s == send for o, s in self.physical(lane.target))

    def server(self) -> ServerFacts:
        self._asked()
        return ServerFacts(version="fake", uptime_seconds=int(self.clock() - self._started_at))

    # ── inside ──

    def _answers(self) -> None:
        if not self.up:
            raise SinkUnavailable("connection refused")

    def _asked(self) -> None:
        self._answers()
        if self.ask_fails is not None:
            raise self.ask_fails

    def _meets(self, table: str, send: Send | None) -> Fault | None:
        self._answers()
        fault = self.meet(table, send)
        if fault is Fault.REFUSED:
            raise SinkUnavailable("connection refused")
        if fault is Fault.OVERLOADED:
            raise SinkUnavailable("Code: 202. Too many simultaneous queries", code=202)
        if isinstance(fault, ReplicatorError):
            raise fault
        return fault

    def _apply(self, send: Send, batch: pa.Table) -> None:
        self.inserts += 1
        if self.tables is not None and send.target not in self.tables:
            raise SinkMisshapen(f"table {send.target} does not exist", code=60)
        offsets = tuple(batch["log_offset" if "log_offset" in batch.column_names else "_offset"].to_pylist())
        if any(self.refuses(offset) for offset in offsets):
            raise SinkRejected("constraint violated", code=469)
        part = Part(offsets=offsets, range=send.offsets, checksum=send.checksum, send=send.send, table=batch)
        if self._remember(send):
            self.parts.setdefault(send.target, []).append(part)
        if self.view_throws:
            raise SinkUnavailable("Code: 395. while pushing to view", code=395)
        if "_version" in batch.column_names:
            state = self.state.setdefault(send.target, {})
            for key, version in _last_versions(batch).items():
                state[key] = max(state.get(key, 0), version)

    def _remember(self, send: Send) -> bool:
        """Whether the token was new."""
        tokens = self.tokens.setdefault(send.target, deque(maxlen=self.window or None))
        known = send.token in tokens
        if not known and self.window:
            tokens.append(send.token)
        return not known

    def _newest(self, table: str, offsets: OffsetRange) -> list[Part]:
        """The parts that FINAL shows of a range; a part that another one covers in part counts as neither."""
        if self.tables is not None and table not in self.tables:
            raise SinkMisshapen(f"table {table} does not exist", code=60)
        chosen: dict[OffsetRange, Part] = {}
        for part in self.parts.get(table, ()):
            inside = offsets.first <= part.range.first and part.range.last <= offsets.last
            if inside and (part.range not in chosen or chosen[part.range].send < part.send):
                chosen[part.range] = part
        return list(chosen.values())


def _last_versions(table: pa.Table) -> dict[str, int]:
    last: dict[str, int] = {}
    for key, version in zip(table["_key"].to_pylist(), table["_version"].to_pylist(), strict=True):
        last[key] = max(last.get(key, 0), version)
    return last


class InlinePool:
    """Runs each task at once, in the caller's thread: a turn of deliver is then a plain sequence."""

    def start(self, finished: Callable[[], None]) -> None: ...

    def dismiss(self) -> None: ...

    def submit(self, task: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(task())
        except Exception as error:
            future.set_exception(error)
        return future


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Poll until it holds, ever less often, for many a condition is a query; fails the test after ``seconds``."""
    deadline = time.monotonic() + seconds
    pause = 0.002
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(pause)
        pause = min(pause * 1.3, 0.03)

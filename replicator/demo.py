"""``replicator demo``: a trade flow through the real service, killed half-way, and both sides compared at the end.

Guarantees that it passes only when every change is on both sides exactly once, every current row is as it was
produced, and a price altered in ClickHouse is found. Stops what it started, however it ends.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from attrs import define, field, frozen

from replicator.demo_compare import Difference, Sides, TableResult
from replicator.demo_room import Room, check_extras
from replicator.demo_trade_flow import KEYS, Change, TradeFlow
from replicator.errors import ReplicatorError
from replicator.model import Op
from replicator.producer import Producer
from replicator.schema import TableSchema, table_schema
from replicator.service import build_sink, build_source, open_database
from replicator.sink import ClickHouseSink
from replicator.source import RedisSource

KILL_FROM, KILL_BY = 0.45, 0.6
"""The service is killed when this much is written and something is delivered; writing waits for it at the second."""
DOWN_SECONDS = 1.0
TICK_SECONDS = 0.05
STALLED_SECONDS = 30.0
FOUND_MAX = 5
"""Differences named per table; a side that lacks everything is named by its counts."""
SENT_TIMEOUT_SECONDS = 10.0


@frozen(kw_only=True)
class DemoOptions:
    """``directory`` None: a temporary one, removed at the end unless ``keep``."""

    directory: Path | None = None
    keep: bool = False
    changes: int = 20_000
    seconds: float = 12.0
    """About how long the changes are spread over."""


@frozen(kw_only=True)
class Gauges:
    """How far the changes have come, in changes."""

    written: int
    logged: int
    delivered: int

    def __str__(self) -> str:
        return f"{self.written:,} written, {self.logged:,} logged, {self.delivered:,} delivered"


class Show(Protocol):
    """Whoever watches."""

    def step(self, text: str, *, bad: bool = False) -> None:
        """Something was done."""

    def gauges(self, gauges: Gauges) -> None:
        """Something has moved."""


@frozen(kw_only=True)
class DemoReport:
    """What held and what did not. ``problems`` empty: everything held."""

    seconds: float
    changes: int
    killed_at: Gauges | None
    tables: Sequence[TableResult]
    altered: Difference | None
    found: Sequence[Difference]
    problems: Sequence[str]
    directory: Path | None
    """Where it all can be looked at; None when nothing was kept."""


@define(kw_only=True)
class Play:
    """The running part: a producer, the service, and two gauges read from Redis and ClickHouse themselves."""

    room: Room
    options: DemoOptions
    show: Show
    flow: TradeFlow
    producer: Producer
    source: RedisSource
    sink: ClickHouseSink
    written: int = 0
    killed_at: Gauges | None = None
    _changes: Iterator[Change] = field(init=False)
    _last: Gauges = field(factory=lambda: Gauges(written=0, logged=0, delivered=0), init=False)
    _moved_at: float = field(factory=time.monotonic, init=False)

    def __attrs_post_init__(self) -> None:
        self._changes = itertools.islice(self.flow.changes(), self.options.changes)

    def run(self) -> None:
        """Write everything, kill the service on the way, and wait until ClickHouse has it all or nothing moves."""
        self._start("the service runs")
        begun, down_until = time.monotonic(), 0.0
        while self.written < self.options.changes or down_until:
            self._write(self._due(time.monotonic() - begun))
            gauges = self._look()
            if self.killed_at is None and self._may_kill(gauges):
                self._kill()
                down_until = time.monotonic() + DOWN_SECONDS
            elif down_until and time.monotonic() >= down_until:
                self._start("started again: it reads on where its log ends")
                down_until = 0.0
            elif not down_until:
                self._require_progress()
            time.sleep(TICK_SECONDS)
        self.producer.flush(SENT_TIMEOUT_SECONDS)
        self._drain()

    def _due(self, elapsed: float) -> int:
        """How many changes should be written by now."""
        share = min(1.0, elapsed / self.options.seconds)
        if self.killed_at is None:
            share = min(share, KILL_BY)
        return int(share * self.options.changes)

    def _write(self, until: int) -> None:
        for change in itertools.islice(self._changes, max(0, until - self.written)):
            self.written += 1
            if change.op is Op.DELETE:
                self.producer.delete(change.table, change.row, at=change.at)
            elif change.op is Op.CREATE:
                self.producer.create(change.table, change.row, at=change.at)
            else:
                self.producer.upsert(change.table, change.row, at=change.at)

    def _look(self) -> Gauges:
        head = self.source.published_head()
        stored = self.sink.scalar(
            "select toInt64(ifNull(sum(total_rows), 0)) from system.tables "
            "where database = currentDatabase() and name in {names:Array(String)}",
            {"names": [f"{table}_log" for table in KEYS]},
        )
        gauges = Gauges(written=self.written, logged=head[1] if head else 0, delivered=stored)
        if gauges != self._last:
            self._last, self._moved_at = gauges, time.monotonic()
            self.show.gauges(gauges)
        return gauges

    def _may_kill(self, gauges: Gauges) -> bool:
        return gauges.delivered > 0 and self.written >= KILL_FROM * self.options.changes

    def _kill(self) -> None:
        """With work in its hands: a burst that it has had no time to finish."""
        self._write(self.written + self.options.changes // 20)
        self.producer.flush(SENT_TIMEOUT_SECONDS)
        gauges = self._look()
        self.room.kill_service()
        self.killed_at = gauges
        self.show.step(
            f"kill -9 of the service: {gauges}; the producer goes on",
            bad=True,
        )

    def _start(self, what: str) -> None:
        self.room.start_service()
        self.show.step(f"{what} (process {self.room.service_pid})")

    def _require_progress(self) -> None:
        """Raise when the service has ended, or runs and gets nowhere."""
        self.room.require_service()
        if self._stalled:
            self.show.step(f"nothing has moved for {STALLED_SECONDS:.0f} s", bad=True)
            raise ReplicatorError(
                f"the service runs but nothing moves: {self._last}",
                hint=f"see {self.room.service_log}; --keep leaves it",
            )

    @property
    def _stalled(self) -> bool:
        return time.monotonic() - self._moved_at > STALLED_SECONDS

    def _drain(self) -> None:
        """Wait until both have everything; what is missing when nothing moves any more is for the comparison to say."""
        while min(self._last.logged, self._last.delivered) < self.written:
            if self._stalled:
                self.show.step(f"nothing has moved for {STALLED_SECONDS:.0f} s: {self._last}", bad=True)
                return
            self.room.require_service()
            time.sleep(TICK_SECONDS)
            self._look()
        self.show.step(f"all {self.written:,} changes are in DuckDB and in ClickHouse")


def run_demo(options: DemoOptions, show: Show) -> DemoReport:
    """The whole demo. Raises UsageError or ReplicatorError when it cannot be played to its end."""
    begun = time.monotonic()
    check_extras()
    room = Room(directory=options.directory, keep=options.keep)
    try:
        room.prepare()
        show.step(f"Redis and ClickHouse are up, in {room.place}")
        flow = TradeFlow(opened_at=dt.datetime.now(dt.UTC))
        killed_at = _play(room, options, show, flow)
        code = room.stop_service()
        show.step(f"the service stopped with exit code {code}", bad=code != 0)
        tables, altered, found = _examine(room, flow, show)
        problems = [f"the service stopped with exit code {code}, not 0"] if code else []
        problems += [f"{result.table}: {problem}" for result in tables for problem in result.problems]
        if not problems and (altered is None or found != [altered]):
            problems.append(f"altered: {altered or 'nothing'}; found: {len(found)} differences")
        if problems:
            problems += [f"the service logged: {line}" for line in room.service_errors()]
        return DemoReport(
            seconds=round(time.monotonic() - begun, 1),
            changes=options.changes,
            killed_at=killed_at,
            tables=tables,
            altered=altered,
            found=found,
            problems=problems,
            directory=room.place if room.keep else None,
        )
    finally:
        with _undisturbed():
            room.close()


def _play(room: Room, options: DemoOptions, show: Show, flow: TradeFlow) -> Gauges | None:
    source, sink = build_source(room.settings), build_sink(room.settings)
    producer = Producer(room.stack.endpoints.redis_url, key=KEYS)
    with contextlib.closing(source), contextlib.closing(sink), producer:
        play = Play(room=room, options=options, show=show, flow=flow, producer=producer, source=source, sink=sink)
        play.run()
        return play.killed_at


def _examine(room: Room, flow: TradeFlow, show: Show) -> tuple[list[TableResult], Difference | None, list[Difference]]:
    """Compare every table; where they are equal, alter one price in ClickHouse; then look for differences."""
    database, sink = open_database(room.settings), build_sink(room.settings)
    with contextlib.closing(database), contextlib.closing(sink):
        sides = Sides(log=database.session(), sink=sink)
        schemas = [table_schema(t.name, t.columns, t.key) for t in room.settings.tables]
        tables = [sides.compare(s, flow.sent[s.name], flow.current[s.name]) for s in schemas]
        altered = None
        if not any(result.problems for result in tables):
            altered = _alter_a_price(sides, next(s for s in schemas if s.name == "trades"), show)
        found = [difference for schema in schemas for difference in sides.differences(schema, FOUND_MAX)]
        return tables, altered, found


def _alter_a_price(sides: Sides, schema: TableSchema, show: Show) -> Difference | None:
    """One cent on a trade in the middle of the history. None when there is none to be had."""
    middle = f"select _offset, _key, price from {schema.log_name} where _op = 'c' order by _offset limit 1 offset {{}}"
    count = sides.log.rows(f"select count(*) from {schema.log_name} where _op = 'c'")[0][0]
    row = sides.log.row(middle.format(count // 2))
    if row is None:
        return None
    offset, key, price = row
    sides.sink.command(
        f"alter table {schema.log_name} update price = price + toDecimal64('0.01', 6) where _offset = {offset:d}",
        {"mutations_sync": 2},
    )
    after = sides.sink.rows(f"select price from {schema.log_name} final where _offset = {offset:d}")
    if not after:
        return None
    show.step(f"behind its back, in ClickHouse: {key}'s price {price} → {after[0][0]}", bad=True)
    return Difference(table=schema.name, offset=offset, key=key, column="price", duckdb=price, clickhouse=after[0][0])


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Cleaning up takes seconds: further signals to stop change nothing about it."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)

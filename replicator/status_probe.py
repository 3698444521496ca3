"""Asks Redis and ClickHouse how they stand, now and then, in threads of its own, so that `status` never waits.

Guarantees: what it holds carries its age; an engine that does not answer is known as silent, and what it said before
is forgotten; one engine's silence never delays the other's answer. Never writes anywhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from replicator.changelog import StreamPosition
from replicator.database import statement
from replicator.errors import ReplicatorError, SinkMisshapen, SinkRefused, SourceRefused
from replicator.model import entry_order
from replicator.retry import told
from replicator.sink import ClickHouseSink
from replicator.source import RedisSource, StreamDescription
from replicator.status import EngineStatus

PROBE_SECONDS = 2.0
VERSION_SECONDS = 60.0
STALE_SECONDS = 15.0
"""An answer this old says nothing of now."""


@frozen(kw_only=True)
class RedisFacts:
    """What Redis last said. ``streams`` holds each configured stream as it was then."""

    asked_at: float
    version: str | None = None
    memory_used_bytes: int | None = None
    memory_max_bytes: int | None = None
    """0 where it has no limit."""
    streams: Mapping[str, StreamDescription] = field(factory=dict)
    error: str | None = None
    refused: bool = False


@frozen(kw_only=True)
class SinkFacts:
    """What ClickHouse last said. ``confirmed``: per table, the end of the ledger's contiguous union from offset 1."""

    asked_at: float
    version: str | None = None
    confirmed: Mapping[str, int] = field(factory=dict)
    error: str | None = None
    refused: bool = False


@define
class Probe:
    """Two loops, one per engine; `redis` and `clickhouse` hold the latest answers."""

    pipeline: str
    source: RedisSource
    sink: ClickHouseSink
    streams: Callable[[], Sequence[str]]
    stop: threading.Event
    interval_seconds: float = PROBE_SECONDS
    redis: RedisFacts | None = None
    clickhouse: SinkFacts | None = None
    _version_at: float = 0.0

    def run_redis(self) -> None:
        """Until stopped."""
        while not self.stop.is_set():
            self.redis = self._ask_redis()
            self.stop.wait(self.interval_seconds)

    def run_clickhouse(self) -> None:
        """Until stopped."""
        while not self.stop.is_set():
            self.clickhouse = self._ask_clickhouse()
            self.stop.wait(self.interval_seconds)

    def _ask_redis(self) -> RedisFacts:
        try:
            about = self.source.ping()
            streams = {stream: self.source.describe(stream) for stream in self.streams()}
        except ReplicatorError as error:
            refused = isinstance(error, SourceRefused)
            return RedisFacts(asked_at=time.monotonic(), error=str(error), refused=refused)
        return RedisFacts(
            asked_at=time.monotonic(),
            version=about.get("valkey_version") or about.get("redis_version"),
            memory_used_bytes=about.get("used_memory"),
            memory_max_bytes=about.get("maxmemory"),
            streams=streams,
        )

    def _ask_clickhouse(self) -> SinkFacts:
        try:
            version = self._version()
            confirmed = self._confirmed()
        except ReplicatorError as error:
            refused = isinstance(error, SinkRefused)
            return SinkFacts(asked_at=time.monotonic(), error=told(error, asked=True), refused=refused)
        return SinkFacts(asked_at=time.monotonic(), version=version, confirmed=confirmed)

    def _version(self) -> str | None:
        """Asked anew after every silence, and now and then."""
        last, clock = self.clickhouse, time.monotonic()
        if last is None or last.version is None or last.error or clock - self._version_at >= VERSION_SECONDS:
            self._version_at = clock
            return self.sink.server().version
        return last.version

    def _confirmed(self) -> dict[str, int]:
        """Asks only for the ledger's newest part; from the beginning where the part known before has gone."""
        known = dict(self.clickhouse.confirmed) if self.clickhouse else {}
        try:
            rows = self._ledger_ends(known)
        except SinkMisshapen:
            if self.sink.columns("replicator_batches"):
                raise
            return {}  # no ledger yet
        anchored = {table: confirmed for table, confirmed, anchors in rows if anchors or not known.get(table)}
        if anchored.keys() >= known.keys():
            return anchored
        return {table: confirmed for table, confirmed, _ in self._ledger_ends({})}

    def _ledger_ends(self, known: Mapping[str, int]) -> Sequence[Sequence[Any]]:
        parameters = {"pipeline": self.pipeline, "tables": list(known), "offsets": list(known.values())}
        return self.sink.rows(statement("status/confirmed"), parameters)


def backlog_entries(position: StreamPosition | None, about: StreamDescription | None) -> int | None:
    """How many entries of a stream are still to be read; None when Redis did not say."""
    if about is None:
        return None
    read = entry_order(position.last_entry_id) if position else (0, 0)
    if not about.length or entry_order(about.last_entry_id) <= read:
        return 0
    if position is None or (about.first_entry_id is not None and entry_order(about.first_entry_id) > read):
        return about.length
    if about.entries_added is None:
        return None
    return max(1, min(about.length, about.entries_added - position.entries_read))


def engine_status(facts: RedisFacts | SinkFacts | None, *, clock: float) -> EngineStatus:
    """An engine as last asked; unknown when the answer is missing or too old."""
    if facts is None:
        return EngineStatus()
    age = clock - facts.asked_at
    if age > STALE_SECONDS:
        return EngineStatus(reachable=False, error=f"no answer for {age:.0f} s", asked_seconds_ago=age)
    return EngineStatus(
        reachable=facts.error is None,
        refused=facts.refused,
        version=facts.version,
        error=facts.error,
        asked_seconds_ago=age,
    )

"""Capture alone between a real Redis and a real DuckDB file, for tests that take either away or turn them back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define, field

from replicator.admit import Admission
from replicator.capture import Capture, CaptureProgress, CaptureSettings
from replicator.catalog import Catalog, Routes
from replicator.changelog import ChangeLog
from replicator.config import migrations_dir
from replicator.database import Database, DatabaseOptions
from replicator.dedup import Window
from replicator.errors import OwnershipLost, ReplicatorError
from replicator.model import NO_ENTRY, StreamPosition
from replicator.ownership import Ownership, seat_of
from replicator.source import RedisSource, SourceOptions

PATIENCE_SECONDS = 60.0


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """What ``condition`` gave once it was true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@define
class CaptureRoom:
    """One log; capture runs between ``start`` and ``stop`` and is started again after an error, as the service does."""

    path: Path
    url: str
    streams: tuple[str, ...] = ("trades",)
    start_newest: bool = False
    ids: Window = field(factory=lambda: Window(seconds=0, ids=0))
    lease_seconds: float | None = None
    """With a lease, as the service has it; without one, nobody else is expected."""
    errors: list[ReplicatorError] = field(factory=list)
    database: Database = field(init=False)
    source: RedisSource = field(init=False)
    capture: Capture = field(init=False)
    ownership: Ownership = field(init=False)
    _stop: threading.Event = field(factory=threading.Event)
    _threads: list[threading.Thread] = field(factory=list)

    def start(self) -> CaptureRoom:
        self.database = Database.open(DatabaseOptions(path=self.path))
        self.database.migrate(migrations_dir() / "duckdb")
        self.source = RedisSource(SourceOptions(url=self.url, timeout_seconds=2))
        self._stop = threading.Event()
        self.ownership = Ownership(
            store=self.source,
            pipeline="main",
            instance_id="the log's own",
            seat=seat_of(self.path),
            lease_seconds=self.lease_seconds or 60,
        )
        self.capture = Capture(
            settings=CaptureSettings(
                streams=lambda: self.streams, routes=Routes, first_position=self._first_position, ids=self.ids
            ),
            source=self.source,
            changelog=ChangeLog.open(self.database),
            admission=Admission(session=self.database.session(), catalog=Catalog.open(self.database, (), self.streams)),
            session=self.database.session(),
            progress=CaptureProgress(),
            stop=self._stop,
            may_log=self.ownership.check if self.lease_seconds else lambda: None,
        )
        loops = [self.capture.run] if self.lease_seconds is None else [self._capture, self._own]
        self._threads = [threading.Thread(target=self._keep_running, args=(loop,)) for loop in loops]
        for thread in self._threads:
            thread.start()
        return self

    def _own(self) -> None:
        self.ownership.run(self._stop)

    def _capture(self) -> None:
        self.ownership.acquire(self._stop)
        self.capture.run()

    def stop(self) -> None:
        if self._threads:
            self._stop.set()
            self.ownership.wake()
            for thread in self._threads:
                thread.join(PATIENCE_SECONDS)
                assert not thread.is_alive()
            self._threads = []
            self.source.close()
            self.database.close()

    def _first_position(self, stream: str) -> StreamPosition:
        last = self.source.describe(stream).last_entry_id if self.start_newest else NO_ENTRY
        return StreamPosition(stream=stream, last_entry_id=last)

    def wait_owner_lost(self) -> OwnershipLost:
        return wait_until(lambda: next((e for e in self.errors if isinstance(e, OwnershipLost)), None), "another owner")

    def _keep_running(self, loop: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                loop()
            except ReplicatorError as error:
                self.errors.append(error)
                self._stop.wait(0.05)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        session = self.database.session()
        try:
            return session.rows(sql)
        finally:
            session.close()

    @property
    def logged(self) -> list[tuple[Any, ...]]:
        """(stream, epoch, entry id, payload) in the order of the log."""
        return self.rows("select stream, stream_epoch, entry_id, payload from change_log order by log_offset")

    @property
    def payloads(self) -> list[str]:
        return [row[3] for row in self.logged]

    @property
    def gaps(self) -> list[tuple[Any, ...]]:
        """(cause, entries lost, after, before) in the order found."""
        return self.rows("select cause, entries_lost, after_entry_id, before_entry_id from stream_gaps order by id")

    def position(self, stream: str = "trades") -> StreamPosition | None:
        session = self.database.session()
        try:
            return self.capture.changelog.positions(session).get(stream)
        finally:
            session.close()

    def wait_logged(self, count: int) -> None:
        wait_until(lambda: self.capture.changelog.head >= count, f"{count} changes in the log")

    def wait_gap(self, count: int = 1) -> list[tuple[Any, ...]]:
        wait_until(lambda: len(self.gaps) >= count, f"{count} gaps")
        return self.gaps

    def wait_settled(self) -> None:
        """Until the baseline is taken and Redis has witnessed where the log stands."""

        def settled() -> bool:
            for stream in self.streams:
                p, about = self.position(stream), self.source.describe(stream)
                if p is None or about.group_entry_id != p.behind or p.last_entry_id != about.last_entry_id:
                    return False
                if about.entries_added is not None and p.entries_unread is None:
                    return False
            return True

        wait_until(settled, "capture at rest")

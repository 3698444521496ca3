"""Snapshots: a consistent, read-only copy of the current rows, and of a part of the log, as a DuckDB file of its own.

Guarantees: all of it was true at one head offset, which ``meta`` names; T, T_log and ``change_log`` have the names and
types they have in the log's file, as tables of values, so that an older DuckDB reads them and computes nothing; the
file has its name only when it is whole. The log's file is never opened a second time, and no append waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version

import structlog
from attrs import define, field, frozen

from replicator.catalog import Catalog
from replicator.changelog import ChangeLog
from replicator.database import Session, quote
from replicator.errors import DatabaseUnavailable
from replicator.free_space import disk_free_bytes
from replicator.schema import literal
from replicator.snapshot_files import SnapshotDirectory, SnapshotFile

STORAGE_VERSION = "v1.0.0"
"""What every DuckDB since 1.0 can read."""
ALIAS = "_snapshot"
SLICE_OFFSETS = 200_000
"""Of the log, copied at a time; between two of them others have the processor."""
PAUSE_PART = 1.0
"""After each step it rests for so many times as long as the step took."""
PAUSE_SECONDS_MAX = 5.0

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class Snapshot:
    """One that was taken. ``log_first`` is the first offset of its part of the log, None where it has none."""

    file: SnapshotFile
    head_offset: int
    log_first: int | None
    rows: int
    seconds: float


@define(kw_only=True)
class SnapshotMaker:
    """Makes one at a time, in whatever thread calls. ``rest`` waits between two steps, and raises where it is to end."""

    changelog: ChangeLog
    catalog: Catalog
    directory: SnapshotDirectory
    pipeline: str
    free_bytes_min: int = 0
    rest: Callable[[float], None] = field(default=lambda _: None)
    _rows: int = field(default=0, init=False)

    def take(self, session: Session, *, log_changes: int = 0) -> Snapshot:
        """Take one with the current rows and the last ``log_changes`` of the log. Raises DatabaseUnavailable."""
        started, at, self._rows = time.monotonic(), datetime.now(UTC), 0
        made = self.directory.prepare(at)
        self._refuse_full_disk()
        session.execute(f"attach {literal(str(made))} as {ALIAS} (storage_version {literal(STORAGE_VERSION)})")
        try:
            with session.transaction():  # what it has seen stays, whatever retention deletes meanwhile
                head, first = self._fill(session, at, log_changes)
        finally:
            session.execute(f"detach database if exists {ALIAS}")
        file = self.directory.publish(made, at)
        seconds = time.monotonic() - started
        log.info("snapshot_taken", file=file.path.name, head_offset=head, rows=self._rows, seconds=round(seconds, 3))
        return Snapshot(file=file, head_offset=head, log_first=first, rows=self._rows, seconds=seconds)

    def _refuse_full_disk(self) -> None:
        free = disk_free_bytes(self.directory.path)
        needed = self.free_bytes_min + self.changelog.database.size_bytes()
        if self.free_bytes_min and free is not None and free < needed:
            raise DatabaseUnavailable(
                f"{self.directory.path} has {free / 1e6:,.0f} MB free, and a snapshot may take it below "
                "[retention] min_free_bytes",
                hint="free some space, or name a directory on another disk",
            )

    # ── what is in it ──

    def _fill(self, session: Session, at: datetime, log_changes: int) -> tuple[int, int | None]:
        """Everything as of the moment of the first statement: it is one transaction of reading the log's file."""
        row = session.row("select min(log_offset), max(log_offset) from change_log")
        oldest, head = row if row and row[0] is not None else (1, 0)
        first = max(oldest, head - log_changes + 1) if log_changes and head else None
        for schema in self.catalog.current.values():
            self._copy(session, schema.name, f"select * from {quote(schema.name)}")
            session.execute(f"create view {ALIAS}.{quote(schema.state_name)} as from {quote(schema.name)}")
        if first is not None:
            self._copy_log(session, first, head)
        self._describe(session, at, head, first)
        return head, first

    def _copy_log(self, session: Session, first: int, head: int) -> None:
        """``change_log`` and every T_log, a slice at a time."""
        tables: list[tuple[str, str, str]] = [("change_log", "change_log", "log_offset")]
        tables += [(s.log_name, quote(s.log_name), "_offset") for s in self.catalog.current.values()]
        for name, source, _ in tables:
            session.execute(f"create table {ALIAS}.{quote(name)} as from {source} limit 0")
        for low in range(first, head + 1, SLICE_OFFSETS):
            high = min(head, low + SLICE_OFFSETS - 1)
            for name, source, offset in tables:
                sql = f"insert into {ALIAS}.{quote(name)} from {source} where {offset} between {low:d} and {high:d}"
                self._step(session, sql)

    def _copy(self, session: Session, name: str, query: str) -> None:
        self._step(session, f"create table {ALIAS}.{quote(name)} as {query}")

    def _step(self, session: Session, sql: str) -> None:
        started = time.monotonic()
        for (rows,) in session.rows(sql):
            self._rows += int(rows)
        self.rest(min(PAUSE_SECONDS_MAX, PAUSE_PART * (time.monotonic() - started)))

    def _describe(self, session: Session, at: datetime, head: int, first: int | None) -> None:
        told = {
            "pipeline": self.pipeline,
            "head_offset": str(head),
            "log_first_offset": None if first is None else str(first),
            "taken_at": f"{at:%Y-%m-%dT%H:%M:%S.%f}Z",
            "timeline": str(self.changelog.timeline),
            "replicator_version": version("replicator"),
        }
        session.execute(f"create table {ALIAS}.meta (key varchar not null, value varchar)")
        for key, value in told.items():
            session.execute(f"insert into {ALIAS}.meta values (?, ?)", [key, value])

"""Retention: the oldest changes leave the log, by age and by size, once nothing needs them any more.

Guarantees: what is deleted is a prefix of the log, delivered more than an hour before the last delivery, verified where
that is scheduled, folded, in no open failed sync without a copy, and gone from Redis, so that what is read again is
recognised; at least the last change stays. Short transactions that hold up no append; a kill leaves each done or not.
Never deletes while somebody has pinned the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Protocol

import structlog
from attrs import define, frozen

from replicator.catalog import Catalog
from replicator.changelog import ChangeLog
from replicator.database import Session, now, statement
from replicator.errors import DatabaseUnavailable, ReplicatorError, SourceUnavailable
from replicator.failpoints import failpoint
from replicator.model import entry_order
from replicator.state import applied_offset, fold
from replicator.witness import StreamDescription

SETTLED_SECONDS = 3600.0
"""A ClickHouse that was restarted may have lost what it took so long before its last insert: see `sink_return`."""
TURN_SECONDS = 5.0
SLICE_CHANGES = 2 * 122_880
"""Deleted in one transaction: two of DuckDB's row groups, whose blocks are then free to be used again."""
SLICES_PER_TURN = 50
PAUSE_SECONDS = 0.02
CHECKPOINT_CHANGES = 8 * 122_880
"""After so many DuckDB is asked to free their blocks, which it does at a checkpoint."""
CHECKPOINTS_MAX = 6
"""How often that is asked before the file is measured anew: an open transaction keeps the blocks."""
CHECKPOINT_TRIES = 100
SIZE_PART_KEPT = 0.95
"""Of the limit: how far the file is brought down when it has grown beyond it."""

log = structlog.get_logger(__name__)


class RedisWitness(Protocol):
    """What Redis still holds."""

    def describe(self, stream: str) -> StreamDescription: ...


@frozen(kw_only=True)
class Limits:
    """Either 0: that one is off."""

    age_days: float = 0
    bytes: int = 0

    @property
    def is_on(self) -> bool:
        return bool(self.age_days or self.bytes)


@frozen(kw_only=True)
class Needed:
    """The first offset that must stay, and why."""

    offset: int
    why: str


@define(kw_only=True)
class Retention:
    """A loop of its own. ``verified`` says per lane how far the last clean comparison came; None: none is scheduled."""

    limits: Limits
    changelog: ChangeLog
    catalog: Catalog
    source: RedisWitness
    stop: threading.Event
    failed_table: str = '"failed_syncs"'
    verified: Callable[[Session], Mapping[str, int] | None] = lambda _: None
    want_folded: Callable[[int], None] = lambda _: None
    """Asks the upkeep of current rows to come that far soon."""
    may_delete: Callable[[], None] = lambda: None
    """Raises where this process no longer owns the pipeline."""
    settled_seconds: float = SETTLED_SECONDS
    changes_deleted: int = 0
    waits_for: str | None = None
    """Why less is deleted than the limits ask for; None when nothing is in the way."""
    bytes_used: int | None = None
    """What of the file is in use: it never shrinks, what is deleted is used again. Measured where size is limited."""
    _since_checkpoint: int = 0
    _bytes_each: float = 0.0
    _pending_bytes: int = 0
    _checkpoints: int = 0

    def run(self) -> None:
        """Until stopped."""
        while not self.stop.wait(TURN_SECONDS):
            try:
                self.turn()
            except SourceUnavailable as error:  # the lease has run out: capture says so
                self.waits_for = str(error)

    def turn(self) -> int:
        """Delete what is due and not needed. Returns how many changes that were."""
        session = self.changelog.database.session()
        try:
            return self._turn(session) if self.limits.is_on else 0
        finally:
            session.close()

    def _turn(self, session: Session) -> int:
        deleted, surplus = 0, self._surplus(session)
        for _ in range(SLICES_PER_TURN):
            self.may_delete()
            with self.changelog.pins.unless_held() as holder:
                if holder is not None:
                    self.waits_for = f"{holder} reads the log"
                    break
                gone = self._slice(session, surplus - deleted)
            deleted += gone
            if not gone or self.stop.wait(PAUSE_SECONDS):
                break
        if deleted:
            self._count(session, deleted)
        return deleted

    def _count(self, session: Session, deleted: int) -> None:
        log.info("log_pruned", changes=deleted, oldest_offset=self.changelog.oldest)
        self.changes_deleted += deleted
        self._since_checkpoint += deleted
        self._pending_bytes = int(deleted * self._bytes_each)
        if self._pending_bytes or self._since_checkpoint >= CHECKPOINT_CHANGES:
            self._checkpoint(session)

    # ── one slice ──

    def _slice(self, session: Session, surplus: int) -> int:
        """Delete at most one slice. Returns how many changes that were."""
        first = self.changelog.oldest
        due = self._due(session, first, min(self.changelog.head - 1, first + SLICE_CHANGES - 1), surplus)
        if due < first:
            self.waits_for = None
            return 0
        last, self.waits_for = self._allowed(session, first, due)
        if last < first:
            return 0
        with session.transaction():
            session.execute("delete from change_log where log_offset <= ?", [last])
            failpoint("retention.inside")
        self.changelog.oldest = last + 1
        return last - first + 1

    def _due(self, session: Session, first: int, last: int, surplus: int) -> int:
        """The last offset of the slice that the limits would have deleted."""
        young = last + 1
        if self.limits.age_days and last >= first:
            cutoff = now() - timedelta(days=self.limits.age_days)
            sql = "select min(log_offset) from change_log where log_offset between ? and ? and logged_at >= ?"
            row = session.row(sql, [first, last, cutoff])
            young = row[0] if row and row[0] is not None else last + 1
        by_age = young - 1 if self.limits.age_days else first - 1
        return min(last, max(by_age, first + surplus - 1))

    def _allowed(self, session: Session, first: int, due: int) -> tuple[int, str | None]:
        """The last offset up to ``due`` that nobody needs, and what keeps the rest."""
        try:
            needed = self._needed(session, first, due)
        except ReplicatorError as error:  # who cannot be asked may need all of it
            return first - 1, str(error)
        if needed is None or needed.offset > due:
            return due, None
        return needed.offset - 1, f"{needed.why} (offset {needed.offset})"

    def _needed(self, session: Session, first: int, due: int) -> Needed | None:
        """What is needed of ``first..due``, the first of it."""
        found = [*self._records(session, first), *self._unfolded(session, due), *self._in_redis(session, first, due)]
        needed = [Needed(offset=max(first, offset), why=why) for why, offset in found]
        return min(needed, key=lambda each: each.offset, default=None)

    def _records(self, session: Session, oldest: int) -> Sequence[tuple[str, int]]:
        verified = self.verified(session)
        sql = statement("retention/needed", self.failed_table)
        lanes = verified or {}
        where = {"lanes": list(lanes), "offsets": list(lanes.values()), "verify": verified is not None}
        rows = session.rows(sql, {**where, "oldest": oldest, "settled_seconds": self.settled_seconds})
        return [(why, offset) for why, offset in rows if offset is not None]

    def _unfolded(self, session: Session, due: int) -> Sequence[tuple[str, int]]:
        """Have folded what is not. A table that is no longer declared is folded here: nobody else does it."""
        found = []
        for name in self.catalog.tables_seen:
            applied = applied_offset(session, name)
            while applied < due and name not in self.catalog.current and not self.stop.is_set():
                with self.catalog.shaping:
                    applied = fold(session, self.catalog.history(name)[-1], due)
            if applied < due:
                self.want_folded(due)
                found.append((f"the current rows of {name} do not contain it yet", applied + 1))
        return found

    def _in_redis(self, session: Session, first: int, due: int) -> Sequence[tuple[str, int]]:
        """What Redis still holds of a range: after a rollback it is read again, and must be recognised."""
        held = []
        for stream in self.changelog.positions(session):
            about = self.source.describe(stream)
            if about.exists and about.first_entry_id is not None:
                low, high = entry_order(about.first_entry_id)[0], entry_order(about.last_entry_id)[0]
                held.append((stream, low, high))
        if not held:
            return []
        streams, lows, highs = zip(*held, strict=True)
        where = {"streams": list(streams), "lows": list(lows), "highs": list(highs), "first": first, "last": due}
        row = session.row(statement("retention/held"), where)
        return [("Redis still holds its entry", row[0])] if row and row[0] is not None else []

    # ── by size ──

    def _surplus(self, session: Session) -> int:
        """How many of the oldest changes must go for the file to be below its limit."""
        if not self.limits.bytes:
            return 0
        if self._pending_bytes:
            self._checkpoint(session)
        self.bytes_used = used = self._used(session)
        if self._pending_bytes or used <= self.limits.bytes:
            return 0
        self._bytes_each = used / max(1, self.changelog.head - self.changelog.oldest + 1)
        return int((used - SIZE_PART_KEPT * self.limits.bytes) / self._bytes_each) + 1

    def _used(self, session: Session) -> int:
        row = session.row("select block_size * used_blocks from pragma_database_size()")
        return int(row[0] if row else 0) + self.changelog.database.wal_bytes()

    def _checkpoint(self, session: Session) -> None:
        """Have DuckDB free the blocks. It may be refused, and does nothing for what an open transaction still sees."""
        before, self._since_checkpoint = self._used(session), 0
        started = time.monotonic()
        for _ in range(CHECKPOINT_TRIES):
            try:
                session.execute("checkpoint")
                break
            except DatabaseUnavailable:  # somebody is writing: between two commits it is possible
                self.stop.wait(PAUSE_SECONDS)
        freed = before - self._used(session)
        self._checkpoints += 1
        log.debug("retention_checkpoint", freed_bytes=freed, seconds=round(time.monotonic() - started, 3))
        if freed >= self._pending_bytes / 2 or self._checkpoints >= CHECKPOINTS_MAX:
            self._pending_bytes = self._checkpoints = 0

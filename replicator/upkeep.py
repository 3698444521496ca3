"""What is done now and then beside the two loops: state folded, the DuckDB file checkpointed while capture is calm.

Guarantees: it takes short transactions of its own and never holds up an append. Never touches the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
from attrs import define, field

from replicator.capture import CaptureProgress
from replicator.catalog import Catalog
from replicator.database import Database, Session
from replicator.errors import DatabaseUnavailable
from replicator.state import FOLD_OFFSETS_MAX, applied_offset, fold

TURN_SECONDS = 1.0
FOLD_OFFSETS = 100_000
"""Folding every so many changes holds most: 594k changes/s at 5 M keys. Source: measured on DuckDB 2.0.0."""
FOLD_OFFSETS_BEHIND = FOLD_OFFSETS_MAX
"""While capture has a backlog: what is done once per key and fold is a third then, and nobody waits for the state."""
FOLD_IDLE_SECONDS = 10.0
WAL_BYTES_IDLE = 1 << 20

log = structlog.get_logger(__name__)


@define
class Upkeep:
    """The third loop; lowest in priority."""

    database: Database
    session: Session
    catalog: Catalog
    progress: CaptureProgress
    stop: threading.Event
    wanted_through: int = 0
    """Up to where somebody needs the current rows folded soon."""
    may_grow: Callable[[], bool] = lambda: True
    """Whether the file may; while it may not, nothing is folded."""
    _commits: int = 0
    _folded: dict[str, int] = field(factory=dict)
    """How far each table was folded when it was last looked at."""
    _calm_since: float = field(factory=time.monotonic)

    def run(self) -> None:
        """Until stopped."""
        while not self.stop.wait(TURN_SECONDS):
            self.turn()

    def turn(self) -> None:
        """One round of everything that is due."""
        calm_seconds = self._calm_seconds()
        head = self.progress.released_head
        for name in list(self.catalog.current) if self.may_grow() else ():
            self._fold(name, head, self._step(calm_seconds))
        if calm_seconds > TURN_SECONDS and self.database.wal_bytes() > WAL_BYTES_IDLE:
            self._checkpoint()

    def _step(self, calm_seconds: float) -> int:
        """How many offsets are worth a fold."""
        if calm_seconds >= FOLD_IDLE_SECONDS:
            return 1
        return FOLD_OFFSETS_BEHIND if self.progress.behind else FOLD_OFFSETS

    def _calm_seconds(self) -> float:
        if self.progress.commits != self._commits:
            self._commits, self._calm_since = self.progress.commits, time.monotonic()
        return time.monotonic() - self._calm_since

    def _fold(self, table: str, head: int, offsets_min: int) -> None:
        if self._folded.get(table) == head:
            return
        applied = applied_offset(self.session, table)
        while (head - applied >= offsets_min or applied < min(head, self.wanted_through)) and not self.stop.is_set():
            with self.catalog.shaping:
                schema = self.catalog.current.get(table)
                reached = fold(self.session, schema, head) if schema else applied
            log.debug("state_folded", table=table, through=reached)
            if reached <= applied:
                break
            applied = reached
        self._folded[table] = applied

    def _checkpoint(self) -> None:
        """Refused while another transaction is writing: then the next calm moment will do."""
        try:
            self.session.execute("checkpoint")
        except DatabaseUnavailable as error:
            log.debug("checkpoint_put_off", error=str(error))

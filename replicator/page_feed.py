"""What the page shows, as one frame for all who look: the status report, what was kept aside, events, operator actions.

Guarantees: a frame is made once, however many look, and none while nobody does; the last hour and what happened are
remembered either way, within bounds. Asks neither Redis nor ClickHouse: see `page_rows` for the one count it does show.
"""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from replicator.operations import Answer, Selection
from replicator.page_history import TEXT_MAX, Chronicle, History, reason_key
from replicator.page_rows import RowCounts
from replicator.status import StatusReport, TableStatus
from replicator.status_file import read_last_verify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replicator.running import RunningService

TICK_SECONDS = 0.25
VIEWERS_MAX = 16
REASONS_SHOWN = 50
KEPT_SHOWN = 6
ACTIONS_SHOWN = 20
STREAMS_SHOWN = 1000
EVENTS_SHOWN = 40

TABLE_COLUMNS: dict[str, Callable[[TableStatus], Any]] = {
    "table": lambda t: t.table,
    "checkpoint": lambda t: t.checkpoint_offset,
    "confirmed": lambda t: t.confirmed_offset,
    "pending": lambda t: t.pending,
    "parked": lambda t: t.parked,
    "paused": lambda t: t.paused,
    "circuit": lambda t: t.circuit,
    "attempt": lambda t: t.attempt,
    "next_try_seconds": lambda t: t.next_try_seconds,
    "last_error": lambda t: _cut(t.last_error),
    "stopped": lambda t: _cut(t.stopped),
}
"""Tables travel by column: there may be thousands, and a name for every value would be most of a frame."""


@define
class PageFeed:
    """Runs beside the loops; `frame` is the newest, None until there is one or while nobody looks."""

    running: RunningService
    history: History = field(factory=History)
    chronicle: Chronicle = field(factory=Chronicle)
    rows: RowCounts = field(init=False)
    frame: bytes | None = None
    viewers: int = 0
    _lock: threading.Lock = field(factory=threading.Lock)
    _seen: StatusReport | None = None
    _framed: StatusReport | None = None
    _at: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.rows = RowCounts(running=self.running, wanted=lambda: self.viewers > 0)

    @contextmanager
    def viewer(self) -> Iterator[bool]:
        """Look for a while; False when too many look already."""
        with self._lock:
            admitted = self.viewers < VIEWERS_MAX
            self.viewers += admitted
        try:
            yield admitted
        finally:
            with self._lock:
                self.viewers -= admitted

    def run(self) -> None:
        """Until the service stops."""
        while not self.running.service.stop.wait(TICK_SECONDS):
            self.tick()

    def tick(self) -> None:
        """Remember a report that is new; make a frame of it when somebody looks."""
        report = self.running.watch.latest
        if report is not None and report is not self._seen:
            self._seen, self._at = report, time.time()
            self.history.take(report, self._at)
            self.chronicle.take(report, self._at)
        if not self.viewers:
            self.frame = self._framed = None
        elif report is not None and report is not self._framed:
            self.frame, self._framed = _json(self._view(report)), report

    def hour(self) -> bytes:
        """The last hour, for whoever begins to look."""
        return _json(self.history.as_json())

    # ── one frame ──

    def _view(self, report: StatusReport) -> dict[str, Any]:
        told = report.as_json()
        reasons = report.reasons
        del told["tables"], told["reasons"]
        told["streams"] = told["streams"][:STREAMS_SHOWN]
        return {
            **told,
            "at": round(self._at, 3),
            "command": _command(self.running.settings.config_dir),
            "reasons": [
                {
                    "state": str(reason.state),
                    "text": _cut(reason.text),
                    "since": round(self.chronicle.since.get(reason_key(reason), self._at), 1),
                }
                for reason in reasons[:REASONS_SHOWN]
            ],
            "reasons_total": len(reasons),
            "streams_total": len(report.streams),
            "tables": self._tables(report.tables),
            "kept": self._kept(report),
            "events": self.chronicle.as_json()[:EVENTS_SHOWN],
            "actions": self._actions(),
            "point": self.history.points[-1].as_json(),
        }

    def _tables(self, tables: Sequence[TableStatus]) -> dict[str, list[Any]]:
        columns = {name: [read(table) for table in tables] for name, read in TABLE_COLUMNS.items()}
        log, sink, verified = self.rows.log, self.rows.sink, self._verified()
        names = [table.table for table in tables]
        columns["log_rows"] = [None if log is None else log.get(name, 0) for name in names]
        columns["sink_rows"] = [None if sink is None else sink.get(name) for name in names]
        columns["mismatches"] = [verified.get(name) for name in names]
        return columns

    def _verified(self) -> dict[str, int]:
        session = self.running.service.database.session()
        try:
            found: dict[str, int] = read_last_verify(session).get("tables", {})
            return found
        finally:
            session.close()

    def _kept(self, report: StatusReport) -> dict[str, list[Answer]]:
        """The oldest of what waits for somebody; not asked for where nothing does."""
        ops, chosen = self.running.operations, Selection(limit=KEPT_SHOWN)
        return {
            "failed": _short(ops.failed(chosen)) if report.failed_syncs.open else [],
            "rejected": _short(ops.rejected(chosen)) if report.rejected_entries.open else [],
            "gaps": _short(ops.gaps(chosen)) if report.gaps.open else [],
        }

    def _actions(self) -> list[Answer]:
        return _short(self.running.operations.actions(limit=ACTIONS_SHOWN))


def _json(value: Any) -> bytes:
    """On one line, whatever is in it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _short(rows: list[Answer]) -> list[Answer]:
    return [{name: _cut(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows]


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}…"


def _command(config_dir: Path) -> str:
    """How a command is called that finds this service from anywhere."""
    return f"replicator --config-dir {shlex.quote(str(config_dir.absolute()))}"

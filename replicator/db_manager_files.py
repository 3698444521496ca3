"""The DuckDB files that this process's managers have open: each once, however many use it.

Guarantees: a file of ours is never opened a second time, nor looked at through another descriptor: closing that one
would drop DuckDB's lock, and another process could write beside us. Readers, however busy, leave the file alone for
half of the time, so that a service that starts can have it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field

from replicator.client import database_in_use
from replicator.config import Settings
from replicator.database import Database
from replicator.errors import DatabaseUnavailable

WAIT_SECONDS = 10.0
READ_SECONDS = 0.25
"""Readers join one that has the file for so long; then all let go of it."""
REST_SECONDS_MAX = 0.1
POLL_SECONDS = 0.005


@define
class _OpenFile:
    database: Database
    users: int = 1
    opened_at: float = field(factory=time.monotonic)

    @property
    def writes(self) -> bool:
        return not self.database.options.read_only


@define
class OpenFiles:
    """By path, with how many use each."""

    _files: dict[Path, _OpenFile] = field(factory=dict)
    _rests_until: dict[Path, float] = field(factory=dict)
    _changed: threading.Condition = field(factory=lambda: threading.Condition(threading.RLock()))

    def owned_elsewhere(self, settings: Settings) -> bool:
        """Whether another process owns the profile's file."""
        with self._changed:
            return settings.writer.database.path.resolve() not in self._files and database_in_use(settings)

    def take(self, path: Path, opened: Callable[[], Database], *, to_write: bool = False) -> Database:
        """The file as it is open here, or else as ``opened`` opens it. Give it back with `give_back`."""
        path = path.resolve()
        with self._changed:
            deadline = time.monotonic() + WAIT_SECONDS
            while not self._may_have(path, to_write=to_write) and time.monotonic() < deadline:
                self._changed.wait(POLL_SECONDS)
            found = self._files.get(path)
            if found is None:
                self._files[path] = _OpenFile(opened())
            elif to_write and not found.writes:
                raise DatabaseUnavailable(f"{path} is being read by this process", hint="wait until its queries end")
            else:
                found.users += 1
            return self._files[path].database

    def _may_have(self, path: Path, *, to_write: bool) -> bool:
        found, clock = self._files.get(path), time.monotonic()
        if found is None:
            return to_write or clock >= self._rests_until.get(path, 0.0)
        return found.writes or (not to_write and clock < found.opened_at + READ_SECONDS)

    def give_back(self, path: Path) -> None:
        """The last to give a file back closes it."""
        path = path.resolve()
        with self._changed:
            found = self._files[path]
            found.users -= 1
            if not found.users:
                del self._files[path]
                found.database.close()
                clock = time.monotonic()
                self._rests_until[path] = clock + min(clock - found.opened_at, REST_SECONDS_MAX)
                self._changed.notify_all()

    @contextmanager
    def reading(self, path: Path, opened: Callable[[], Database]) -> Iterator[Database]:
        """The file, for the length of one query."""
        database = self.take(path, opened)
        try:
            yield database
        finally:
            self.give_back(path)


FILES = OpenFiles()
"""Of this process."""

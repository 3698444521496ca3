"""Where a manager's question goes: to the running service, to the file, or to the newest snapshot of it.

Guarantees: asked anew for each question, so that a service may start or stop meanwhile; a file that a service owns is
never opened; a reader holds the file no longer than its query takes. It says which way was taken and how old that is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import structlog
from attrs import define, field, frozen

from replicator.catalog import Catalog
from replicator.client import Client, ServiceUnavailable, reach
from replicator.config import Profile, Settings
from replicator.database import Database, DatabaseOptions
from replicator.db_manager_answer import only_writes, read, write
from replicator.db_manager_files import FILES
from replicator.db_manager_managed import Managed
from replicator.errors import DatabaseUnavailable, LogCorrupt, UsageError
from replicator.query_ask import asked
from replicator.query_question import Format, Question
from replicator.service_open import open_database
from replicator.snapshot_files import SnapshotDirectory

START_SECONDS = 30.0
"""So long a service that holds the file may take to answer over HTTP."""
POLL_SECONDS = 0.05
TRIES = 3

log = structlog.get_logger(__name__)


class Way(StrEnum):
    SERVICE = "service"
    FILE = "file"
    SNAPSHOT = "snapshot"


@frozen(kw_only=True)
class ReadFrom:
    """Which way an answer came. ``as_of`` is when that was last written; for the service it is now."""

    way: Way
    where: str
    as_of: datetime

    @property
    def age_seconds(self) -> float:
        return 0.0 if self.way is Way.SERVICE else max(0.0, (datetime.now(UTC) - self.as_of).total_seconds())

    def __str__(self) -> str:
        age = "" if self.way is Way.SERVICE else f", {self.age_seconds:,.0f} s old"
        return f"the {self.way} {self.where}{age}"


@define(eq=False)
class Ways:
    """Of one manager. Any thread may ask."""

    settings: Settings
    profile: Profile
    taken: ReadFrom | None = None
    """The way of the last answer."""
    managed: Managed = field(init=False)
    _owned: Database | None = None
    _client: Client | None = None
    _lock: threading.RLock = field(factory=threading.RLock)

    def __attrs_post_init__(self) -> None:
        self.managed = Managed.of(self.settings)

    @property
    def path(self) -> Path:
        return self.profile.database.path

    # ── asking ──

    def ask(self, question: Question) -> pa.Table:
        """The answer, whichever way it comes. Raises what the query does, and DatabaseUnavailable where there is none."""
        for _ in range(TRIES - 1):
            try:
                return self._ask(question)
            except (ServiceUnavailable, DatabaseUnavailable) as error:
                if not self._has_turned(error):
                    raise
        return self._ask(question)

    def _has_turned(self, error: ServiceUnavailable | DatabaseUnavailable) -> bool:
        """Whether the way itself is no longer the right one: a service has stopped, or started, in between."""
        owned = FILES.owned_elsewhere(self.settings)
        return not owned if isinstance(error, ServiceUnavailable) else owned and error.code == "locked"

    def _ask(self, question: Question) -> pa.Table:
        with self.managed.explaining(question.sql):
            if not self.profile.database.read_only:
                client = self.own()
                return self._ask_service(client, question) if client else self._ask_owned(question)
            try:
                client = self.service()
            except ServiceUnavailable as error:
                return self._ask_snapshot(question, error)
            return self._ask_service(client, question) if client else self._ask_file(question)

    def _ask_service(self, client: Client, question: Question) -> pa.Table:
        with asked(client, question, Format.ARROW) as pieces:
            self._take(ReadFrom(way=Way.SERVICE, where=client.url, as_of=datetime.now(UTC)))
            return pa.ipc.open_stream(pa.py_buffer(b"".join(pieces))).read_all()

    def _ask_owned(self, question: Question) -> pa.Table:
        with self._lock:
            if self._owned is None:
                raise UsageError("this manager is closed", hint="make a new one")
            database = self._owned
        self._take(ReadFrom(way=Way.FILE, where=str(self.path), as_of=datetime.now(UTC)))
        if not only_writes(database, question.sql):
            return read(database, question)
        self.managed.check(question.sql)
        return write(database, question)

    def _ask_file(self, question: Question) -> pa.Table:
        try:
            if not self.path.exists():
                raise DatabaseUnavailable(
                    f"there is no database at {self.path} yet", hint="the first `replicator run` makes it"
                )
            with FILES.reading(self.path, lambda: self._opened(self.path)) as database:
                self._take(ReadFrom(way=Way.FILE, where=str(self.path), as_of=_written_at(self.path)))
                return read(database, question)
        except (DatabaseUnavailable, LogCorrupt) as error:
            if FILES.owned_elsewhere(self.settings):
                raise
            return self._ask_snapshot(question, error)

    def _ask_snapshot(self, question: Question, error: Exception) -> pa.Table:
        """The newest snapshot stands in for what cannot be asked; without one that is the error."""
        directory = SnapshotDirectory(path=self.settings.snapshots.directory, pipeline=self.settings.pipeline.name)
        newest = next(iter(directory.published()), None)
        if newest is None:
            raise error
        path = newest.path
        log.warning("snapshot_stands_in", path=str(path), reason=str(error))
        with FILES.reading(path, lambda: self._opened(path)) as database:
            self._take(ReadFrom(way=Way.SNAPSHOT, where=str(path), as_of=newest.taken_at))
            return read(database, question)

    def _opened(self, path: Path) -> Database:
        performance = self.profile.performance
        return Database.open(
            DatabaseOptions(
                path=path,
                read_only=True,
                threads=performance.max_threads,
                memory_mb=performance.cache_size_mb,
                temp_directory=performance.temp_directory,
            )
        )

    def _take(self, way: ReadFrom) -> None:
        if self.taken is None or (self.taken.way, self.taken.where) != (way.way, way.where):
            log.info("reading_from", way=str(way.way), where=way.where, age_seconds=round(way.age_seconds, 1))
        self.taken = way

    # ── the service, or the file as ours ──

    def service(self) -> Client | None:
        """The running service, None when no process owns the file. Waits for one that is starting."""
        deadline = time.monotonic() + START_SECONDS
        while FILES.owned_elsewhere(self.settings):
            try:
                return self._reached()
            except ServiceUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
        self._client = None
        return None

    def _reached(self) -> Client:
        with self._lock:
            known, found = self._client, reach(self.settings, greet=False)
            if known is None or (known.url, known.pid) != (found.url, found.pid):
                known = found.greet()
            self._client = known
            return known

    def own(self) -> Client | None:
        """For the read-write profile: the running service, or None when the file is ours, now and until `close`."""
        with self._lock:
            while self._owned is None:
                client = self.service()
                if client is not None:
                    return client
                try:
                    self._owned = FILES.take(self.path, self._made, to_write=True)
                except DatabaseUnavailable as error:
                    if error.code != "locked" or not FILES.owned_elsewhere(self.settings):
                        raise
        return None

    def _made(self) -> Database:
        """The file, made and migrated where it must be, with the views of the declared tables."""
        database = open_database(self.settings)
        try:
            Catalog.open(database, self.settings.tables, self.settings.redis.streams)
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """Without the file, so that something else may have it; it is taken again when next asked for."""
        with self._lock:
            self.close()
            yield

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            if self._owned is not None:
                self._owned = None
                FILES.give_back(self.path)


def _written_at(path: Path) -> datetime:
    stamps = [each.stat().st_mtime for each in (path, path.with_name(f"{path.name}.wal")) if each.exists()]
    return datetime.fromtimestamp(max(stamps), UTC)

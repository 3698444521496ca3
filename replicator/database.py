"""The one DuckDB file: opening, sessions, transactions, error translation, migrations.

Guarantees: every error of DuckDB leaves here as one of ours; a transaction commits whole or not at all; a
file whose applied migrations were edited is refused. Never opens the file a second time in this process
(closing the second handle would drop the lock of the first).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import structlog
from attrs import define, field, frozen

from replicator.database_migrations import migration_checksum, read_migrations
from replicator.errors import DatabaseUnavailable, LogCorrupt, ReplicatorError
from replicator.failpoints import failpoint

HEADER_BYTES = 3 * 4096
"""Of a DuckDB file, before its first block."""
COMMITTED = "COMMIT succeeded and is durable"
"""What DuckDB says when only the checkpoint after a commit failed. Source: seen on DuckDB 2.0.0."""
CHECKPOINT_THRESHOLD = "256MB"
"""Removes the 110–450 ms stalls of DuckDB's default of 16 MB. Source: measured on DuckDB 2.0.0."""

MEMORY_SHARE_MAX = 0.6
"""How much of the machine's memory DuckDB may be given in need. Its own default is 0.8."""

log = structlog.get_logger(__name__)


@cache
def statement(name: str) -> str:
    """The SQL text of ``replicator/sql/<name>.sql``, one statement."""
    return (files("replicator") / "sql" / f"{name}.sql").read_text()


def now() -> datetime:
    """This instant in UTC, naive as DuckDB's TIMESTAMP wants it."""
    return datetime.now(UTC).replace(tzinfo=None)


def quote(identifier: str) -> str:
    """An identifier for DuckDB, whatever it contains."""
    return '"' + identifier.replace('"', '""') + '"'


@frozen(kw_only=True)
class DatabaseOptions:
    """How the file is opened. ``memory_mb`` bounds DuckDB's cache, not the process."""

    path: Path
    read_only: bool = False
    threads: int | None = None
    memory_mb: int | None = None
    temp_directory: Path | None = None

    def as_duckdb(self) -> dict[str, Any]:
        options: dict[str, Any] = {"preserve_insertion_order": True, "autoload_known_extensions": False}
        options |= {"autoinstall_known_extensions": False, "checkpoint_threshold": CHECKPOINT_THRESHOLD}
        if self.threads:
            options["threads"] = self.threads
        if self.memory_mb:
            options["memory_limit"] = f"{self.memory_mb}MB"
        if self.temp_directory:
            options["temp_directory"] = str(self.temp_directory)
        return options


@define
class Session:
    """One thread's connection to the file. Not to be shared between threads.

    After the instance had to be reopened, the next call runs on the new one.
    """

    database: Database
    _cursor: duckdb.DuckDBPyConnection | None = field(default=None, init=False)
    _generation: int = field(default=-1, init=False)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        if self._cursor is None or self._generation != self.database.generation:
            self._cursor, self._generation = self.database.new_cursor()
        return self._cursor

    def execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> None:
        with self._translated():
            self.cursor().execute(sql, parameters)

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        with self._translated():
            return self.cursor().execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> tuple[Any, ...] | None:
        """The first row. The answer is read to its end: one partly read keeps its transaction, and checkpoints wait."""
        return next(iter(self.rows(sql, parameters)), None)

    def arrow(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> pa.Table:
        """The whole answer as one Arrow table."""
        with self._translated():
            return self.cursor().sql(sql, params=parameters or None).to_arrow_table()

    @contextmanager
    def relation(self, **tables: pa.Table) -> Iterator[None]:
        """Let SQL see Arrow tables under these names, without a copy, inside the block."""
        cursor = self.cursor()
        with self._translated():
            for name, table in tables.items():
                cursor.register(name, table)
        try:
            yield
        finally:
            for name in tables:
                with suppress(duckdb.Error):  # a fatal error has taken the names away with the connection
                    cursor.unregister(name)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside commits together, durably, or not at all."""
        with self._translated():
            cursor = self.cursor()
            cursor.begin()
            try:
                yield
                self._commit(cursor)
            except BaseException as error:
                with suppress(duckdb.Error):  # the failed commit or a fatal error has ended it already
                    cursor.rollback()
                if _NO_MEMORY.search(str(error)):
                    self.database.relieve()
                raise

    def _commit(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Commit. The checkpoint that may follow can fail for itself: what was committed is durable all the same."""
        try:
            cursor.commit()
        except duckdb.FatalException as error:
            if COMMITTED not in str(error):
                raise
            self.database.invalidate(self._generation)
            if _NO_MEMORY.search(str(error)):
                self.database.relieve()
            log.warning("checkpoint_failed", error=_first_line(error))

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self.database, lambda: self._generation)

    def close(self) -> None:
        if self._cursor is not None:
            self.database.drop_cursor(self._cursor)
            self._cursor = None


@define
class Database:
    """The owner of the file in this process."""

    options: DatabaseOptions
    generation: int = field(default=0, init=False)
    invalidated: bool = field(default=False, init=False)
    memory_mb: int | None = field(init=False)
    """DuckDB's memory limit now: the configured one, or more once a commit needed more."""
    _connection: duckdb.DuckDBPyConnection | None = field(default=None, init=False)
    _cursors: list[duckdb.DuckDBPyConnection] = field(factory=list, init=False)
    _lock: threading.RLock = field(factory=threading.RLock, init=False)

    @memory_mb.default
    def _configured_memory(self) -> int | None:
        return self.options.memory_mb

    @classmethod
    def open(cls, options: DatabaseOptions) -> Database:
        """Open or create the file.

        Raises DatabaseUnavailable when it is locked or its disk is full, LogCorrupt when it is no database
        that this DuckDB can read.
        """
        database = cls(options)
        database._connect()
        return database

    def _connect(self) -> None:
        path = self.options.path
        if not self.options.read_only:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if self.options.temp_directory:
                    self.options.temp_directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseUnavailable(
                    f"cannot create {error.filename}: {error.strerror}", hint="set [database] path or DUCKDB_PATH"
                ) from error
        try:
            self._connection = duckdb.connect(
                str(path), read_only=self.options.read_only, config=self.options.as_duckdb()
            )
            self._connection.execute("set timezone = 'UTC'")
            if self.memory_mb != self.options.memory_mb:
                self._connection.execute(f"set memory_limit = '{self.memory_mb}MB'")
            _check_whole(path, self._connection)
        except (duckdb.Error, OSError) as error:
            raise _opening_error(path, error) from error
        self.generation += 1
        self.invalidated = False

    def new_cursor(self) -> tuple[duckdb.DuckDBPyConnection, int]:
        """A cursor of its own for a session, on the present instance. Give it back with `drop_cursor`."""
        with self._lock:
            if self.invalidated:
                self._reopen()
            assert self._connection is not None, "the database is closed"
            cursor = self._connection.cursor()
            self._cursors.append(cursor)
            return cursor, self.generation

    def drop_cursor(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Close a session's cursor."""
        with self._lock:
            self._cursors = [each for each in self._cursors if each is not cursor]
        cursor.close()

    def _reopen(self) -> None:
        """After a fatal error DuckDB refuses everything until the file is opened anew.

        The instance lives as long as any of its cursors: all are closed first, their sessions take new ones.
        """
        for cursor in self._cursors:
            cursor.close()
        self._cursors.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._connect()
        log.warning("database_reopened", path=str(self.options.path))

    def relieve(self) -> None:
        """A commit found too little memory, and would again: double the limit, up to a part of what the machine has.

        A checkpoint holds a whole row group's large texts; so a few large payloads would stop capture for good.
        """
        with self._lock:
            machine_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
            wanted = min(2 * (self.memory_mb or 0), int(machine_mb * MEMORY_SHARE_MAX))
            if self.memory_mb is None or wanted <= self.memory_mb:
                return
            log.warning("memory_limit_raised", from_mb=self.memory_mb, to_mb=wanted)
            self.memory_mb = wanted
            if self._connection is not None:
                with suppress(duckdb.FatalException):  # it is set again when the file is opened anew
                    self._connection.execute(f"set memory_limit = '{wanted}MB'")

    def invalidate(self, generation: int) -> None:
        """A fatal error was seen on that generation of the instance: the next session call reopens the file."""
        with self._lock:
            if not self.invalidated and generation == self.generation:
                self.invalidated = True
                self.generation += 1

    def session(self) -> Session:
        return Session(self)

    def size_bytes(self) -> int:
        """The file and its WAL, in bytes, without opening either."""
        return _size(self.options.path) + self.wal_bytes()

    def wal_bytes(self) -> int:
        return _size(self.options.path.with_name(self.options.path.name + ".wal"))

    def close(self) -> None:
        """Checkpoint and close. Sessions are unusable afterwards."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def migrate(self, directory: Path) -> list[str]:
        """Apply the migrations not yet applied, each with its record in one transaction.

        Returns the names applied. Raises LogCorrupt when an applied file was edited or is missing.
        """
        session = self.session()
        session.execute(statement("database/create_migrations"))
        applied = dict(session.rows("select name, checksum from schema_migrations"))
        scripts = read_migrations(directory, applied)
        for name, text in scripts:
            with session.transaction():
                session.execute(text)
                failpoint("migration.inside")
                session.execute(
                    "insert into schema_migrations values (?, ?, ?)", [name, migration_checksum(text), now()]
                )
        session.close()
        return [name for name, _ in scripts]


def _check_whole(path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """DuckDB opens a file whose end is missing, and writes to it. Raises LogCorrupt."""
    block_bytes, used_blocks = connection.execute(
        "select block_size, used_blocks from pragma_database_size()"
    ).fetchall()[0]
    needed = HEADER_BYTES + block_bytes * used_blocks
    if _size(path) < needed:
        raise LogCorrupt(
            f"{path} has {_size(path)} bytes and needs {needed}: its end is missing",
            hint="keep the file, then rebuild it with `replicator restore`",
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def translated(database: Database, generation: Callable[[], int]) -> Iterator[None]:
    """The one place where DuckDB's errors become ours; a fatal one invalidates that generation of the instance."""
    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        if isinstance(error, duckdb.FatalException | duckdb.InternalException) or "has been invalidated" in text:
            database.invalidate(generation())
        unavailable = _unavailable(database.options.path, error)
        if unavailable is None:
            raise
        raise unavailable from error


_DAMAGE = re.compile(r"Could not read enough bytes|[Cc]orrupt|checksum .* does not match")
_NO_MEMORY = re.compile(r"(?:failed to|could not) (?:pin|allocate)|[Oo]ut of [Mm]emory")
_STORAGE = (duckdb.IOException, duckdb.ConnectionException, duckdb.FatalException, duckdb.InternalException)


def _unavailable(path: Path, error: duckdb.Error) -> ReplicatorError | None:
    """What the error means for whoever uses the file; None when it is a statement that is wrong."""
    text, committing = _first_line(error), isinstance(error, duckdb.TransactionException)
    unnamed = type(error) is duckdb.Error  # what a damaged block is reported as
    if not (committing or unnamed or isinstance(error, (*_STORAGE, duckdb.OutOfMemoryException))):
        return None
    if _DAMAGE.search(text):
        return LogCorrupt(f"{path} is damaged: {text}", hint="keep the file, then rebuild it with `replicator restore`")
    if _NO_MEMORY.search(text):
        hint = "raise [performance] cache_size_mb"
        return DatabaseUnavailable(f"DuckDB ran out of memory: {text}", hint=hint, code="memory")
    if isinstance(error, duckdb.FatalException | duckdb.InternalException):
        hint = "free disk space if it is full; the file is reopened, nothing acknowledged is lost"
        return DatabaseUnavailable(f"DuckDB gave up on {path}: {text}", hint=hint, code="fatal")
    if committing and "Could not" not in text:
        return DatabaseUnavailable(f"transaction conflict: {text}", code="conflict")
    hint = "check its disk and permissions; free space if it is full"
    return DatabaseUnavailable(f"cannot use {path}: {text}", hint=hint, code="io")


def _opening_error(path: Path, error: Exception) -> ReplicatorError:
    text = str(error)
    holder = re.search(r"PID (\d+)", text)
    if ("lock" in text.lower() and "Conflicting" in text) or "Could not set lock" in text:
        who = f"process {holder[1]}" if holder else "another process"
        return DatabaseUnavailable(
            f"{path} is in use by {who}",
            hint="one process owns the file: stop that one, or ask it over HTTP",
            code="locked",
        )
    if "not a valid DuckDB" in text or "newer version" in text or "storage version" in text:
        return LogCorrupt(
            f"{path} is not a database that DuckDB {duckdb.__version__} can read: {_first_line(error)}",
            hint="name another path, upgrade, or rebuild it with `replicator restore`",
        )
    known = _unavailable(path, error) if isinstance(error, duckdb.Error) else None
    if known is not None and known.code != "io":
        return known
    if isinstance(error, duckdb.IOException | OSError | duckdb.PermissionException):
        return DatabaseUnavailable(
            f"cannot open {path}: {_first_line(error)}", hint="check the path and its permissions"
        )
    return LogCorrupt(
        f"{path} cannot be read: {_first_line(error)}",
        hint="keep the file, then rebuild it with `replicator restore`",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:400] if str(error).strip() else type(error).__name__

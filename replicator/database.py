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

from replicator import database_errors
from replicator.database_migrations import migration_checksum, read_migrations
from replicator.errors import DatabaseUnavailable, LogCorrupt
from replicator.failpoints import failpoint

HEADER_BYTES = 3 * 4096
"""Of a DuckDB file, before its first block."""
COMMITTED = "COMMIT succeeded and is durable"
"""What DuckDB says when only the checkpoint after a commit failed. Source: seen on DuckDB 2.0.0."""
CHECKPOINT_THRESHOLD = "256MB"
"""Removes the 110–450 ms stalls of DuckDB's default of 16 MB. Source: measured on DuckDB 2.0.0."""

ZSTD_NEVER = 1 << 40
"""DuckDB's zstd unpacks whole vectors, so that reading one of 2,048 texts of 1 MB takes 2 GB: long texts stay as they
are, and each is read alone. Source: measured on DuckDB 2.0.0."""
MEMORY_SHARE_MAX = 0.6
"""How much of the machine's memory DuckDB may be given in need. Its own default is 0.8."""

SETTINGS_LEFT = ("memory_limit", "operator_memory_limit")
"""What may still be set on a locked instance: the first by `Database.relieve`, the second for each reader's query."""

log = structlog.get_logger(__name__)


@cache
def statement(name: str, failed_table: str = "failed_syncs") -> str:
    """The SQL text of ``replicator/sql/<name>.sql``, one statement, with ``failed_syncs`` under its configured name."""
    text = (files("replicator") / "sql" / f"{name}.sql").read_text()
    return re.sub(r"\bfailed_syncs\b", lambda _: failed_table, text)


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
    checkpoint_threshold: str = CHECKPOINT_THRESHOLD
    attachable: Path | None = None
    """The one directory in which SQL may make and read files: that of the snapshots."""

    def as_duckdb(self) -> dict[str, Any]:
        options: dict[str, Any] = {"preserve_insertion_order": True, "autoload_known_extensions": False}
        options |= {"autoinstall_known_extensions": False, "checkpoint_threshold": self.checkpoint_threshold}
        if self.threads:
            options["threads"] = self.threads
        if self.memory_mb:
            options["memory_limit"] = f"{self.memory_mb}MB"
        options["zstd_min_string_length"] = ZSTD_NEVER
        if self.temp_directory:
            options["temp_directory"] = str(self.temp_directory)
        options["python_enable_replacements"] = False
        return options

    def locks(self) -> Iterator[str]:
        """What to set once the file is open, so that no statement on any connection can leave it."""
        yield "set timezone = 'UTC'"
        yield f"set allowed_configs = [{', '.join(map(repr, SETTINGS_LEFT))}]"
        if self.attachable:
            yield f"set allowed_directories = ['{str(self.attachable).replace(chr(39), chr(39) * 2)}']"
        yield "set enable_external_access = false"
        yield "set lock_configuration = true"


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
    def reader(self, sql: str, parameters: dict[str, Any], rows: int) -> Iterator[pa.RecordBatchReader]:
        """The answer piece by piece, at most ``rows`` at a time. It need not be read to its end."""
        with self._translated():
            reader = self.cursor().sql(sql, params=parameters).to_arrow_reader(rows)
            try:
                yield reader
            except OSError as error:  # how Arrow passes on what DuckDB met midway
                raise database_errors.met_midway(error) from error
            finally:
                reader.close()

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
            try:
                cursor.begin()
                yield
                self._commit(cursor)
            except BaseException as error:
                self._roll_back(cursor)
                if database_errors.NO_MEMORY.search(str(error)):
                    self.database.relieve()
                raise

    def _roll_back(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """What a failed commit or a fatal error has not ended already; where that fails, the connection goes with it."""
        try:
            cursor.rollback()
        except duckdb.Error:
            self.close()

    def _commit(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Commit. The checkpoint that may follow can fail for itself: what was committed is durable all the same."""
        try:
            cursor.commit()
        except duckdb.FatalException as error:
            if COMMITTED not in str(error):
                raise
            self.database.invalidate(self._generation)
            if database_errors.NO_MEMORY.search(str(error)):
                self.database.relieve()
            log.warning("checkpoint_failed", error=database_errors.first_line(error))

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
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self.options.temp_directory:
                    self.options.temp_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseUnavailable(
                    f"cannot create {error.filename}: {error.strerror}", hint="set [database] path or DUCKDB_PATH"
                ) from error
        try:
            self._connection = duckdb.connect(
                str(path), read_only=self.options.read_only, config=self.options.as_duckdb()
            )
            for setting in self.options.locks():
                self._connection.execute(setting)
            if self.memory_mb != self.options.memory_mb:
                self._connection.execute(f"set memory_limit = '{self.memory_mb}MB'")
            _check_whole(path, self._connection)
        except (duckdb.Error, OSError) as error:
            raise database_errors.opening_error(path, error) from error
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

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Size and time of the file and of its WAL: what every commit changes."""
        paths = (self.options.path, self.options.path.with_name(self.options.path.name + ".wal"))
        return tuple(_stamp(path) for path in paths)

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


def _stamp(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except FileNotFoundError:
        return 0, 0
    return about.st_size, about.st_mtime_ns


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
        found = database_errors.unavailable(database.options.path, error)
        if found is None:
            raise
        raise found from error

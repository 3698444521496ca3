"""The one DuckDB file: opening, sessions, transactions, error translation, migrations.

Guarantees: every error of DuckDB leaves here as one of ours; a transaction commits whole or not at all; a
file whose applied migrations were edited is refused. Never opens the file a second time in this process
(closing the second handle would drop the lock of the first).
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from attrs import define, field, frozen

from replicator.errors import DatabaseUnavailable, LogCorrupt, ReplicatorError

CHECKPOINT_THRESHOLD = "256MB"
"""Removes the 110–450 ms stalls of DuckDB's default of 16 MB. Source: measured on DuckDB 2.0.0."""


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
        with translated(self.database):
            self.cursor().execute(sql, parameters)

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        with translated(self.database):
            return self.cursor().execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> tuple[Any, ...] | None:
        with translated(self.database):
            return self.cursor().execute(sql, parameters).fetchone()

    def arrow(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> pa.Table:
        """The whole answer as one Arrow table."""
        with translated(self.database):
            return self.cursor().sql(sql, params=parameters or None).to_arrow_table()

    @contextmanager
    def relation(self, **tables: pa.Table) -> Iterator[None]:
        """Let SQL see Arrow tables under these names, without a copy, inside the block."""
        cursor = self.cursor()
        with translated(self.database):
            for name, table in tables.items():
                cursor.register(name, table)
        try:
            yield
        finally:
            for name in tables:
                cursor.unregister(name)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside commits together, durably, or not at all."""
        with translated(self.database):
            cursor = self.cursor()
            cursor.begin()
            try:
                yield
                cursor.commit()
            except BaseException:
                _rollback(cursor)
                raise

    def close(self) -> None:
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None


def _rollback(cursor: duckdb.DuckDBPyConnection) -> None:
    try:
        cursor.rollback()
    except duckdb.Error:
        pass  # nothing is open any more: the failed commit or a fatal error has ended it


@define
class Database:
    """The owner of the file in this process."""

    options: DatabaseOptions
    generation: int = field(default=0, init=False)
    invalidated: bool = field(default=False, init=False)
    _connection: duckdb.DuckDBPyConnection | None = field(default=None, init=False)
    _lock: threading.RLock = field(factory=threading.RLock, init=False)

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
        except (duckdb.Error, OSError) as error:
            raise _opening_error(path, error) from error
        self.generation += 1
        self.invalidated = False

    def new_cursor(self) -> tuple[duckdb.DuckDBPyConnection, int]:
        """A cursor of its own for a session, on the present instance."""
        with self._lock:
            if self.invalidated:
                self._reopen()
            assert self._connection is not None, "the database is closed"
            return self._connection.cursor(), self.generation

    def _reopen(self) -> None:
        """After a fatal error DuckDB refuses everything until the file is opened anew."""
        if self._connection is not None:
            self._connection.close()
        self._connect()

    def invalidate(self) -> None:
        """A fatal error was seen: the next session call reopens the file."""
        with self._lock:
            if not self.invalidated:
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
                session.execute(
                    "insert into schema_migrations values (?, ?, ?)", [name, migration_checksum(text), now()]
                )
        session.close()
        return [name for name, _ in scripts]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def migration_checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_migrations(directory: Path, applied: dict[str, str]) -> list[tuple[str, str]]:
    """The scripts in ``directory`` that are not in ``applied`` (name to checksum), in order.

    Raises LogCorrupt when an applied one was edited or has gone.
    """
    scripts = {path.name: path.read_text() for path in sorted(directory.glob("*.sql"))}
    for name, checksum in applied.items():
        if name not in scripts:
            raise LogCorrupt(
                f"migration {name} was applied but is not in {directory}",
                hint="this database was written by a newer release: run that release",
            )
        if migration_checksum(scripts[name]) != checksum:
            raise LogCorrupt(
                f"migration {directory / name} was edited after it was applied",
                hint="put the original back; a change of tables needs a new file",
            )
    return [(name, text) for name, text in scripts.items() if name not in applied]


@contextmanager
def translated(database: Database) -> Iterator[None]:
    """The one place where DuckDB's errors become ours."""
    try:
        yield
    except duckdb.FatalException as error:
        database.invalidate()
        raise DatabaseUnavailable(
            f"DuckDB gave up on {database.options.path}: {_first_line(error)}",
            hint="free disk space if it is full; the file is reopened, nothing acknowledged is lost",
            code="fatal",
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise DatabaseUnavailable(
            f"DuckDB ran out of memory: {_first_line(error)}", hint="raise [performance] cache_size_mb", code="memory"
        ) from error
    except duckdb.TransactionException as error:
        raise DatabaseUnavailable(f"transaction conflict: {_first_line(error)}", code="conflict") from error
    except (duckdb.IOException, duckdb.ConnectionException) as error:
        if "invalidated" in str(error):
            database.invalidate()
        raise DatabaseUnavailable(
            f"cannot use {database.options.path}: {_first_line(error)}",
            hint="check its disk and permissions",
            code="io",
        ) from error


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

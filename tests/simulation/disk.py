"""The disk with the one DuckDB file: a real DuckDB in memory, whose commits may be lost, doubted or the last of a process.

Guarantees: what was committed outlives the process, what was not is gone with it. A copy may be taken at any moment,
as of the last commit, and put back while no process runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from attrs import define, field
from simulation.kernel import Kernel, Process

from replicator.database import Database, DatabaseOptions

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations" / "duckdb"
_WRITES = re.compile(r"\s*(?:--[^\n]*\n\s*)*(?:insert into|update|delete from)\s+\"?(\w+)", re.I)


class CommitFault(StrEnum):
    """What a commit meets."""

    REFUSED = "refused"
    """The disk is full: nothing is committed, and the process is told."""
    DOUBTED = "doubted"
    """It is durable, and the process is told that it failed."""
    FATAL = "fatal"
    """It is durable, and DuckDB gives the whole instance up."""
    DIES_BEFORE = "dies_before"
    DIES_AFTER = "dies_after"


@define(eq=False)
class Disk:
    """What outlives processes. ``meet`` is asked at every commit of one."""

    kernel: Kernel
    meet: Callable[[], CommitFault | None] = lambda: None
    commits: int = 0
    changed: Counter[str] = field(factory=Counter)
    """How often something was committed to each table."""
    written: set[str] = field(factory=set)
    """Tables that were ever written to; the others are empty."""
    blank: dict[str, pa.Table] = field(factory=dict)
    """What each table holds when a run begins."""
    root: duckdb.DuckDBPyConnection = field(init=False)
    _kept: dict[str, tuple[int, list[tuple[Any, ...]]]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        options = DatabaseOptions(path=Path(__file__), threads=1, memory_mb=512)
        self.root = duckdb.connect(":memory:", config=options.as_duckdb())
        for setting in ("set timezone = 'UTC'", "set enable_external_access = false"):
            self.root.execute(setting)
        database = SimDatabase(options)
        database.disk = self
        database.mount()
        database.migrate(MIGRATIONS)

    def open(self, process: Process | None) -> SimDatabase:
        """The file as a process has it open."""
        database = SimDatabase(DatabaseOptions(path=Path(__file__), threads=1, memory_mb=512))
        database.disk, database.process = self, process
        database.mount()
        return database

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What is committed, for the one who checks."""
        return self.root.execute(sql).fetchall()

    def kept(self, table: str, sql: str) -> list[tuple[Any, ...]]:
        """As `rows`, of one table, and asked again only where it has changed since."""
        if self._kept.get(sql, (-1, []))[0] != self.changed[table]:
            self._kept[sql] = (self.changed[table], self.rows(sql))
        return self._kept[sql][1]

    def is_ready(self) -> None:
        """What is in the file now is what every run begins with."""
        names = [n for (n,) in self.rows("select table_name from duckdb_tables() where not temporary order by 1")]
        self.blank = {name: self.root.sql(f'select * from "{name}"').to_arrow_table() for name in names}

    def wipe(self) -> None:
        self.put_back(self.blank)
        self.written.clear()

    def copy(self) -> dict[str, pa.Table]:
        return {name: self.root.sql(f'select * from "{name}"').to_arrow_table() for name in sorted(self.written)}

    def put_back(self, copy: dict[str, pa.Table]) -> None:
        self.root.begin()
        for name in sorted(self.written):
            self.root.execute(f'delete from "{name}"')
            rows = copy.get(name, self.blank[name])
            if rows.num_rows:
                self.root.register("put_back", rows)
                self.root.execute(f'insert into "{name}" select * from put_back')
                self.root.unregister("put_back")
        self.root.commit()
        self.changed.update(self.written)
        self.commits += 1


class SimDatabase(Database):
    """The owner's handle; it never opens the file."""

    disk: Disk
    process: Process | None = None

    def mount(self) -> None:
        self._connection = self.disk.root.cursor()
        self.generation += 1
        self.invalidated = False

    def _connect(self) -> None:
        self.mount()

    def new_cursor(self) -> tuple[Any, int]:
        cursor, generation = super().new_cursor()
        return Cursor(self, cursor, generation), generation

    def drop_cursor(self, cursor: Any) -> None:
        cursor.close()

    def relieve(self) -> None: ...


@define(eq=False)
class Cursor:
    """A connection of DuckDB, every commit of which passes the disk."""

    database: SimDatabase
    inner: duckdb.DuckDBPyConnection
    generation: int
    open: bool = False
    """Whether a transaction is."""
    writing: set[str] = field(factory=set)
    """The tables that it has written to."""

    def begin(self) -> None:
        self._alive()
        self.inner.begin()
        self.open = True
        self.writing.clear()

    def execute(self, sql: str, parameters: Any = ()) -> duckdb.DuckDBPyConnection:
        self._alive()
        writes = _WRITES.match(sql)
        if writes and self.database.process is not None:
            self.database.disk.written.add(writes[1])
        if self.open or self.database.process is None or not writes:
            self.writing |= {writes[1]} if writes else set()
            return self.inner.execute(sql, parameters)
        self.begin()
        self.writing.add(writes[1])
        try:
            rows = self.inner.execute(sql, parameters).fetchall()
        except duckdb.Error:
            self.rollback()
            raise
        self.commit()
        return _Answer(rows)  # type: ignore[return-value]

    def sql(self, sql: str, params: Any = None) -> duckdb.DuckDBPyRelation:
        self._alive()
        return self.inner.sql(sql, params=params)

    def register(self, name: str, table: pa.Table) -> None:
        self.inner.register(name, table)

    def unregister(self, name: str) -> None:
        self.inner.unregister(name)

    def commit(self) -> None:
        self._alive()
        disk, process, kernel = self.database.disk, self.database.process, self.database.disk.kernel
        fault = None
        if process is not None and kernel.current is not None:
            kernel.step("commit")
            fault = disk.meet()
        if fault in (CommitFault.REFUSED, CommitFault.DIES_BEFORE):
            self.rollback()
        else:
            self.open = False
            self.inner.commit()
            disk.commits += 1
            disk.changed.update(self.writing)
        if fault is not None and process is not None:
            self._fail(fault, process)
        if process is not None:
            kernel.step("committed")

    def _fail(self, fault: CommitFault, process: Process) -> None:
        kernel = self.database.disk.kernel
        kernel.note(f"commit {fault}")
        if fault in (CommitFault.DIES_BEFORE, CommitFault.DIES_AFTER):
            kernel.die(process)
        if fault is CommitFault.FATAL:
            raise duckdb.FatalException("FATAL Error: database has been invalidated")
        raise duckdb.IOException("IO Error: Could not write file: No space left on device")

    def rollback(self) -> None:
        self.open = False
        self.inner.rollback()

    def close(self) -> None:
        if self.open:
            self.open = False
            self.inner.rollback()
        self.inner.close()

    def _alive(self) -> None:
        """Of an instance that was given up, or a process that is gone, nothing can be had any more."""
        process = self.database.process
        if process is not None and process.dead:
            if self.open:
                self.rollback()
            self.database.disk.kernel.die(process)
        if self.generation != self.database.generation:
            raise duckdb.FatalException("FATAL Error: database has been invalidated")


@define(eq=False)
class _Answer:
    rows: list[tuple[Any, ...]]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self.rows

"""The declared tables as they are now and as they were: schemas by version, and the lanes deliver sends them in.

Guarantees: a change is typed, sent and hashed by the schema version it was logged under; a table in ClickHouse that
is not as it should be is noticed before a row is sent to it. Never alters a table that it did not make.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from attrs import define, evolve, field, frozen

from replicator import sink_ddl
from replicator.column_types import Kind
from replicator.config import Settings, TableConfig
from replicator.database import Database, Session, now, statement
from replicator.errors import ConfigError, SinkMisshapen
from replicator.failpoints import failpoint
from replicator.lanes import Lane, generic_lane, typed_lane
from replicator.log_columns import GENERIC, PIPELINE, SEND
from replicator.model import GENERIC_LANE
from replicator.schema import (
    DeclaredSums,
    TableSchema,
    compare,
    declared_sums,
    definition,
    from_definition,
    table_schema,
)
from replicator.sink import ClickHouseSink
from replicator.state import create_views


@frozen(kw_only=True)
class Routes:
    """How the entries of each stream are read: the encoding where it is not to be detected, the table it means."""

    encodings: Mapping[str, str] = field(factory=dict)
    tables: Mapping[str, str] = field(factory=dict)
    streams: tuple[str, ...] = ()
    json_columns: Mapping[str, frozenset[str]] = field(factory=dict)
    """By table the columns that are JSON."""


@define
class Catalog:
    """Shared by capture (what a change must look like) and deliver (how it is sent)."""

    database: Database
    log_ttl_days: int = 0
    routes: Routes = field(factory=Routes)
    current: Mapping[str, TableSchema] = field(factory=dict)
    """The declared tables, each at its newest version."""
    sums: Mapping[str, DeclaredSums] = field(factory=dict)
    """What is summed on both sides, of the tables that declare it."""
    pipeline: str = ""
    """Under whose name ClickHouse is told how tables are declared; empty: it is not."""
    _rebuilt: dict[str, int] = field(factory=dict)
    """By table the last version that it was rebuilt for."""
    _versions: dict[tuple[str, int], TableSchema] = field(factory=dict)
    _lanes: dict[tuple[str, int, int], Lane] = field(factory=dict)
    _made: set[tuple[str, int]] = field(factory=set)
    _lock: threading.Lock = field(factory=threading.Lock)
    shaping: threading.RLock = field(factory=threading.RLock)
    """Held while a table's shape is changed in the file, and while its current rows are folded."""

    @classmethod
    def open(
        cls,
        database: Database,
        tables: Sequence[TableConfig],
        streams: Sequence[str],
        log_ttl_days: int = 0,
        kept: Sequence[str] = (),
    ) -> Catalog:
        """The catalog for the configured tables; see `declare`."""
        catalog = cls(database=database, log_ttl_days=log_ttl_days)
        session = database.session()
        for _, version, text, rebuilt in session.rows(statement("catalog/schemas")):
            catalog._take(from_definition(text, version), rebuilt=rebuilt)
        session.close()
        catalog.declare(tables, streams, kept)
        return catalog

    @classmethod
    def configured(cls, database: Database, settings: Settings, kept: Sequence[str] = ()) -> Catalog:
        """The catalog of a pipeline, which also tells ClickHouse how tables are declared."""
        c = settings.clickhouse
        catalog = cls.open(database, settings.tables, settings.redis.streams, c.log_ttl_days, kept)
        catalog.pipeline = settings.pipeline.name
        return catalog

    def _take(self, schema: TableSchema, *, rebuilt: bool) -> None:
        """Know of a version. One that the table was rebuilt for is how all changes before it are typed, too."""
        self._versions[schema.name, schema.schema_version] = schema
        if rebuilt:
            self._rebuilt[schema.name] = schema.schema_version
            for name, version in list(self._versions):
                if name == schema.name:
                    self._versions[name, version] = schema.at_version(version)
            self._lanes = {key: lane for key, lane in self._lanes.items() if key[0] != schema.name}

    def declare(self, tables: Sequence[TableConfig], streams: Sequence[str], kept: Sequence[str] = ()) -> list[str]:
        """Take the configured tables as they are now. Returns what changed, in words.

        A changed table gets a new version, recorded before the first change is logged under it. Raises ConfigError
        with every problem, and then nothing was taken. Tables in ``kept`` stay as they are, whatever is configured.
        """
        with self.shaping:
            return self._declare(tables, streams, kept)

    def _declare(self, tables: Sequence[TableConfig], streams: Sequence[str], kept: Sequence[str]) -> list[str]:
        problems: list[str] = []
        declared: dict[str, TableSchema] = {}
        sums: dict[str, DeclaredSums] = {}
        for table in tables:
            try:
                schema = declared_schema(table)
                declared[table.name] = schema = self._versioned(schema, keep=table.name in kept)
                if found := declared_sums(schema, table.sums, table.by):
                    sums[table.name] = found
            except ConfigError as error:
                problems += [f"replicator.toml: [[tables]] {table.name}: {problem}" for problem in error.problems]
        if problems:
            raise ConfigError(problems)
        changed = [s for s in declared.values() if (s.name, s.schema_version) not in self._versions]
        session = self.database.session()
        self._record(session, changed)
        for schema in declared.values():
            create_views(session, self.history(schema.name))
        session.close()
        self.current, self.sums = declared, sums
        self.routes = Routes(
            encodings={t.stream: t.encoding for t in tables if t.encoding != "auto"},
            tables={t.stream: t.name for t in tables},
            streams=tuple(streams),
            json_columns={s.name: names for s in declared.values() if (names := _json_columns(s))},
        )
        return [f"{s.name} is at version {s.schema_version}" for s in changed]

    def _versioned(self, schema: TableSchema, *, keep: bool) -> TableSchema:
        """The schema at the version it has, or would get."""
        known = self.history(schema.name)
        if not known:
            return schema.at_version(1)
        newest = known[-1]
        if keep:
            return newest
        change = compare(newest, schema)
        if change.refusals:
            raise ConfigError(change.refusals)
        return newest if change.is_empty else schema.at_version(newest.schema_version + 1)

    def _record(self, session: Session, schemas: Sequence[TableSchema]) -> None:
        with session.transaction():
            for schema in schemas:
                add_schema(session, schema, rebuilt=False)
        for schema in schemas:
            self._take(schema, rebuilt=False)

    def take_rebuilt(self, schema: TableSchema) -> None:
        """A table was rebuilt for a declaration that it could not have been altered to: it is the table's newest now."""
        self._take(schema, rebuilt=True)
        self.current = {**self.current, schema.name: schema}
        self.routes = evolve(self.routes, json_columns={**self.routes.json_columns, schema.name: _json_columns(schema)})

    @property
    def tables_seen(self) -> list[str]:
        """Every table that was ever declared."""
        return sorted({name for name, _ in list(self._versions)})

    def history(self, table: str) -> list[TableSchema]:
        """The table's schemas, oldest first."""
        return [self._versions[key] for key in sorted(self._versions) if key[0] == table]

    # ── deliver's side ──

    def lane(self, name: str, schema_version: int) -> Lane:
        """The lane of a table at one schema version; version 0 is the newest of a declared table."""
        if name == GENERIC_LANE:
            return self._lanes.setdefault((name, 0, 0), generic_lane())
        newest = self.history(name)[-1]
        version = schema_version or newest.schema_version
        key = (name, version, newest.schema_version)
        if key not in self._lanes:
            self._lanes[key] = typed_lane(self._versions[name, version], newest)
        return self._lanes[key]

    def ensure(self, sink: ClickHouseSink, lane: Lane) -> None:
        """Make or alter the lane's tables where that is still to be done, and see that they are as expected.

        Batches of every version go into the table as its newest version has it.

        Call with no insert of this lane in flight. Raises SinkMisshapen naming every difference.
        """
        if lane.name == GENERIC_LANE:
            return _check(sink, {GENERIC_LANE: _GENERIC_COLUMNS})
        newest = self.history(lane.name)[-1]
        if (lane.name, newest.schema_version) not in self._made:
            self._make(sink, newest)
        expected = {newest.log_name: sink_ddl.expected_columns(newest)}
        expected[newest.state_name] = sink_ddl.expected_state_columns(newest)
        expected[sink_ddl.feed_name(newest)] = sink_ddl.expected_state_columns(newest)
        try:
            _check(sink, expected, sink_ddl.feed_name(newest))
        except SinkMisshapen:
            self._made.discard((lane.name, newest.schema_version))
            raise
        return None

    def conflicts(self, sink: ClickHouseSink, lane: Lane) -> list[str]:
        """How the lane's tables are unlike any version of ours, in words. Only reads."""
        if lane.name == GENERIC_LANE:
            found = sink.columns_of([GENERIC_LANE]).get(GENERIC_LANE)
            return [f"{GENERIC_LANE} does not exist"] if found is None else sink_ddl.drift(_GENERIC_COLUMNS, found)
        history = self.history(lane.name)
        newest, tables = history[-1], sink.columns_of([history[-1].log_name, history[-1].state_name])
        problems = [f"{name} does not exist" for name in (newest.log_name, newest.state_name) if name not in tables]
        for name, shape in _SHAPES.items():
            columns = tables.get(f"{newest.name}{name}")
            if columns is not None and all(sink_ddl.drift(shape(schema), columns) for schema in history):
                problems += [f"{newest.name}{name}: {text}" for text in sink_ddl.drift(shape(newest), columns)]
        return problems

    def _make(self, sink: ClickHouseSink, schema: TableSchema) -> None:
        """Goes on where an earlier try ended, even one that was killed between two statements."""
        if self.pipeline:  # before the first row of a version is there, so that a restore can read it
            sink.record_schemas([self._on_record(version) for version in self.history(schema.name)])
        for sql in self._alters(sink, schema):
            sink.command(sql)
            failpoint("alter.inside")
        for sql in sink_ddl.renew_statements(schema, self.log_ttl_days or None):
            sink.command(sql)
            failpoint("alter.inside")
        with self._lock:
            self._made.add((schema.name, schema.schema_version))

    def _on_record(self, schema: TableSchema) -> dict[str, object]:
        rebuilt = self._rebuilt.get(schema.name) == schema.schema_version
        row = {"pipeline": self.pipeline, "table_name": schema.name, "schema_version": schema.schema_version}
        return {**row, "definition": definition(schema), "rebuilt": int(rebuilt)}

    def _alters(self, sink: ClickHouseSink, schema: TableSchema) -> list[str]:
        """What T_log and T_state still lack. Raises SinkMisshapen where one is as no version of ours has it."""
        found = sink.columns_of((schema.log_name, schema.state_name))
        shapes = {schema.log_name: sink_ddl.expected_columns, schema.state_name: sink_ddl.expected_state_columns}
        statements = []
        for name, shape in shapes.items():
            if name not in found or not sink_ddl.drift(shape(schema), found[name]):
                continue
            older = [old for old in self.history(schema.name) if not sink_ddl.drift(shape(old), found[name])]
            if not older:
                _check(sink, {name: shape(schema)})
            statements += sink_ddl.alter_table(name, older[-1], schema)
        return statements

    def forget_made(self, table: str) -> None:
        """The table's places in ClickHouse are to be looked at, and put right, before the next row is sent."""
        self._made = {each for each in self._made if each[0] != table}

    def prepare(self, sink: ClickHouseSink) -> list[str]:
        """Make all declared tables now, so that analysts find them before the first change. Returns their names.

        A table that cannot be made is left for its lane to report.
        """
        done = []
        for name, schema in self.current.items():
            try:
                self.ensure(sink, self.lane(name, schema.schema_version))
            except SinkMisshapen:
                continue
            done.append(name)
        return done


def declared_schema(table: TableConfig) -> TableSchema:
    """A table as it is configured. Raises ConfigError with every problem."""
    return table_schema(table.name, table.columns, table.key, table.on_unknown_field)


def refuse_undeclarable(tables: Iterable[TableConfig]) -> None:
    """What no start would take, found without a database. Raises ConfigError with every problem of every table."""
    problems: list[str] = []
    for table in tables:
        try:
            declared_sums(declared_schema(table), table.sums, table.by)
        except ConfigError as error:
            problems += [f"replicator.toml: [[tables]] {table.name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)


def add_schema(session: Session, schema: TableSchema, *, rebuilt: bool) -> None:
    """Record a version in the file. Call inside a transaction."""
    row = [schema.name, schema.schema_version, definition(schema), now(), rebuilt]
    session.execute(statement("catalog/add_schema"), row)


def _json_columns(schema: TableSchema) -> frozenset[str]:
    return frozenset(column.name for column in schema.columns if column.type.kind is Kind.JSON)


_GENERIC_COLUMNS = {c.name: c.clickhouse for c in (PIPELINE, *GENERIC, SEND)}
_SHAPES = {"_log": sink_ddl.expected_columns, "_state": sink_ddl.expected_state_columns}


def _check(sink: ClickHouseSink, expected: Mapping[str, Mapping[str, str]], feed: str = "") -> None:
    """Of the feed only the names matter: what it yields is cast to T_state's types."""
    found = sink.columns_of(list(expected))
    if feed in found:
        found[feed] = {name: expected[feed].get(name, kind) for name, kind in found[feed].items()}
    for table, columns in expected.items():
        problems = sink_ddl.drift(columns, found.get(table, {})) if table in found else ["it does not exist"]
        if problems:
            raise SinkMisshapen(
                f"table {table} in ClickHouse is not as it should be: {'; '.join(problems)}",
                hint="put it back, or rename it away and let it be made anew",
                code="drift",
            )

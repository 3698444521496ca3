"""A rebuilt table takes the old one's place in ClickHouse, or is cleared away. Every step may be taken again.

Guarantees: who reads T or T_log sees the old table or the new one, never less; after a kill between two steps the
next call ends what was begun. Call with nothing of the table on its way. Never drops what holds rows of others.
"""

from __future__ import annotations

from attrs import define, evolve, frozen

from replicator import sink_ddl
from replicator.catalog import Catalog
from replicator.database import Session, now, statement
from replicator.failpoints import failpoint
from replicator.lanes import STAND_IN
from replicator.schema import TableSchema, quote_clickhouse
from replicator.sink import ClickHouseSink

COPYING, EXCHANGING, KEPT, DROPPED, ABANDONED = "copying", "exchanging", "kept", "dropped", "abandoned"
NO_LIMIT = {"max_table_size_to_drop": 0}
IDENTITY = (
    "if(uuid = toUUID('00000000-0000-0000-0000-000000000000'), extract(data_paths[1], '([0-9a-f-]{36})/$'), "
    "toString(uuid))"
)
"""A table's UUID; an Overlay shows it in the path only."""


@frozen(kw_only=True)
class Begun:
    """A rebuild on record."""

    table: str
    stage: str
    reshaped: bool
    log_uuid: str
    state_uuid: str


def stand_in(schema: TableSchema) -> TableSchema:
    """The table under the name that its new tables have until they take its place."""
    return evolve(schema, name=f"{schema.name}{STAND_IN}")


@define
class Swap:
    """Speaks to one ClickHouse, and keeps the record in the file."""

    session: Session
    sink: ClickHouseSink
    catalog: Catalog

    def begun(self, *stages: str) -> list[Begun]:
        sql = (
            "select table_name, stage, reshaped, log_uuid, state_uuid from rebuilds "
            "where list_contains($stages, stage) order by id"
        )
        names = ("table", "stage", "reshaped", "log_uuid", "state_uuid")
        return [Begun(**dict(zip(names, row, strict=True))) for row in self.session.rows(sql, {"stages": list(stages)})]

    def move(self, table: str, before: str, after: str) -> None:
        where = {"table": table, "from": before, "to": after, "at": now()}
        self.session.execute(statement("rebuild/move"), where)

    # ── the stand-in ──

    def make(self, schema: TableSchema, *, reshaped: bool, actor: str) -> None:
        """Empty tables beside the old ones, and the record that they are there."""
        new = stand_in(schema)
        self._drop_tables(schema.name)
        for sql in sink_ddl.create_statements(new, self.catalog.log_ttl_days or None)[:3]:
            self.sink.command(sql)
        uuids = self.uuids(new.log_name, new.state_name)
        row = {"table": schema.name, "reshaped": reshaped, "actor": actor, "at": now()}
        row |= {"log_uuid": uuids[new.log_name], "state_uuid": uuids[new.state_name]}
        self.session.execute(statement("rebuild/begin"), row)

    def abandon(self, table: str) -> None:
        """Clear away a stand-in that never took the table's place."""
        self._drop_tables(table)
        self.move(table, COPYING, ABANDONED)

    def drop_kept(self, table: str) -> None:
        """Clear away the old table that a rebuilt one has replaced."""
        self._drop_tables(table)
        self.move(table, KEPT, DROPPED)

    def _drop_tables(self, table: str) -> None:
        name = f"{table}{STAND_IN}"
        self.sink.command(f"drop view if exists {quote_clickhouse(f'{name}_feed')} sync")
        for part in ("_state", "_log"):
            self.sink.command(f"drop table if exists {quote_clickhouse(name + part)} sync", settings=NO_LIMIT)

    def uuids(self, *names: str) -> dict[str, str]:
        """By name, of those that exist."""
        sql = (
            f"select name, {IDENTITY} from system.tables where database = currentDatabase() "
            "and name in {names:Array(String)}"
        )
        return dict(self.sink.rows(sql, {"names": list(names)}))

    # ── the exchange ──

    def finish(self, begun: Begun) -> None:
        """Put the stand-in in the table's place, whatever of it was done before."""
        schema = self.catalog.history(begun.table)[-1]
        new = stand_in(schema)
        # both feeds go before the tables change places: nothing is on its way that they would miss
        for name in (sink_ddl.feed_name(schema), sink_ddl.feed_name(new)):
            self.sink.command(f"drop view if exists {quote_clickhouse(name)} sync")
        if begun.reshaped:
            self._narrow_view(schema)
        failpoint("rebuild.inside")
        self._exchange(schema.log_name, new.log_name, begun.log_uuid)
        failpoint("rebuild.inside")
        self._exchange(schema.state_name, new.state_name, begun.state_uuid)
        failpoint("rebuild.inside")
        self.catalog.forget_made(begun.table)
        self.catalog.ensure(self.sink, self.catalog.lane(begun.table, 0))
        self.move(begun.table, EXCHANGING, KEPT)

    def _exchange(self, name: str, other: str, uuid: str) -> None:
        found = self.uuids(name, other)
        if found.get(name) == uuid:
            return
        verb = f"exchange tables {quote_clickhouse(name)} and" if name in found else "rename table"
        order = (other,) if name in found else (other, name)
        self.sink.command(f"{verb} {' to '.join(map(quote_clickhouse, order))}")

    def _narrow_view(self, schema: TableSchema) -> None:
        """T with the columns that it has before and after, so that it can be read on both sides of the exchange."""
        held = self.sink.columns(schema.state_name)
        kept = tuple(column for column in schema.columns if column.name in held)
        if held and kept:
            self.sink.command(sink_ddl.create_view(evolve(schema, columns=kept)))

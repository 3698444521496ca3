"""What a table becomes when it is rebuilt under another declaration: whether everything logged fits, and the switch.

Guarantees: a table is rebuilt for a declaration only where every change fits it and each old key is one new key, so
that nothing is rounded, lost or joined by it; the switch is one transaction in the file. Payloads stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from attrs import define, evolve, field, frozen

from replicator.catalog import add_schema
from replicator.database import Session, statement
from replicator.model import Checksum, OffsetRange
from replicator.schema import OnUnknownField, TableSchema, compare, literal
from replicator.state import reshape
from replicator.typed import check_sql, misfits_sql

WINDOW_OFFSETS = 500_000
EXAMPLES_MAX = 5


@frozen(kw_only=True)
class Shape:
    """``history`` types the table's changes by version; it ends with ``newest``. ``old`` is how the table is now."""

    old: TableSchema
    newest: TableSchema
    history: tuple[TableSchema, ...]

    @property
    def reshaped(self) -> bool:
        return self.newest.schema_version != self.old.schema_version

    @property
    def rekeyed(self) -> bool:
        """Whether keys may have another text from now on."""
        old, new = self.old.key_columns, self.newest.key_columns
        return [(c.name, c.type) for c in old] != [(c.name, c.type) for c in new]

    @property
    def changes(self) -> list[str]:
        """What becomes other, in words."""
        if not self.reshaped:
            return []
        before = {c.name: str(c.type) for c in self.old.columns}
        after = {c.name: str(c.type) for c in self.newest.columns}
        found = [f"column {name} goes" for name in before if name not in after]
        found += [f"column {name} {kind} comes" for name, kind in after.items() if name not in before]
        found += [f"column {n}: {k} becomes {after[n]}" for n, k in before.items() if n in after and after[n] != k]
        if self.old.key != self.newest.key:
            found.append(f"the key {list(self.old.key)} becomes {list(self.newest.key)}")
        return found or ["its settings change"]

    def source(self, changes: str = "change_log") -> str:
        """What holds the changes, under their new keys where these change."""
        if not self.rekeyed:
            return changes
        same = f"k.table_name = {literal(self.old.name)} and k.old_key = c.key"
        return f"(select c.* replace (k.new_key as key) from {changes} c join rebuild_keys k on {same})"


def shape_of(history: Sequence[TableSchema], wanted: TableSchema | None) -> Shape:
    """The table as it is declared by ``wanted``; as it is where that is None or says the same."""
    old = history[-1]
    if wanted is None or compare(old, wanted.at_version(old.schema_version)).is_empty:
        return Shape(old=old, newest=old, history=tuple(history))
    newest = wanted.at_version(old.schema_version + 1)
    versions = [*(schema.schema_version for schema in history), newest.schema_version]
    return Shape(old=old, newest=newest, history=tuple(newest.at_version(version) for version in versions))


@define
class Fitting:
    """Looks at changes in the order of their offsets; what does not fit gathers in `problems`."""

    session: Session
    shape: Shape
    looked_through: int = 0
    """Up to which offset the log has been looked at."""
    misfits: int = 0
    examples: list[str] = field(factory=list)

    def begin(self) -> None:
        self.session.execute("delete from rebuild_keys where table_name = ?", [self.shape.old.name])

    def look_at_log(self, last: int) -> None:
        """Go on to an offset."""
        for start in range(self.looked_through + 1, last + 1, WINDOW_OFFSETS):
            self.look("change_log", start, min(last, start + WINDOW_OFFSETS - 1))
        self.looked_through = max(self.looked_through, last)

    def look(self, changes: str, first: int, last: int) -> None:
        """Hold some changes against the new declaration, and learn what their keys become."""
        if not self.shape.reshaped:
            return
        # what no column takes up is no misfit: it stays in the payload
        schema = evolve(self.shape.newest, on_unknown_field=OnUnknownField.KEEP)
        relation = self._relation(changes, first, last)
        sql = f"select row_index from ({check_sql(schema, relation)}) where fits is not true order by 1"
        unfit = [row for (row,) in self.session.rows(sql)]
        self.misfits += len(unfit)
        for row in unfit[: EXAMPLES_MAX - len(self.examples)]:
            one = self._relation(changes, row, row)
            reasons = [f"{c or 'change'} {text}" for _, c, text in self.session.rows(misfits_sql(schema, one))]
            self.examples.append(f"offset {row}: {'; '.join(reasons)}")
        if self.shape.rekeyed:
            self._learn(schema, changes, relation)

    def _relation(self, changes: str, first: int, last: int) -> str:
        """Of a table whose key changes, deletes get the key of what they delete."""
        also = " and op <> 'd'" if self.shape.rekeyed else ""
        return (
            f"(select log_offset as row_index, op, key, payload from {changes} where log_offset between {first:d} and "
            f"{last:d} and table_name = {literal(self.shape.old.name)} and schema_version > 0{also})"
        )

    def _learn(self, schema: TableSchema, changes: str, relation: str) -> None:
        name = literal(schema.name)
        self.session.execute(
            f"insert into rebuild_keys select distinct {name}, l.key, c.key from ({check_sql(schema, relation)}) c "
            f"join {changes} l on l.log_offset = c.row_index where c.key is not null and not exists "
            f"(select 1 from rebuild_keys k where k.table_name = {name} and k.old_key = l.key and k.new_key = c.key)"
        )

    def problems(self, changes: str = "change_log") -> list[str]:
        """Why the table cannot be rebuilt so, in words; nothing where it can."""
        found = []
        if self.misfits:
            found.append(f"{self.misfits} changes do not fit the new declaration: {', '.join(self.examples)}")
        if self.shape.rekeyed:
            found += self._key_problems(changes)
        return found

    def _key_problems(self, changes: str) -> Iterator[str]:
        where = {"table": self.shape.old.name, "limit": EXAMPLES_MAX}
        for old, new in self.session.rows(statement("rebuild/keys_that_part"), where):
            yield f"key {old} becomes {new}: one row would be several"
        for new, old in self.session.rows(statement("rebuild/keys_that_meet"), where):
            yield f"keys {old} all become {new}: several rows would be one"
        sql = statement("rebuild/unknown_deletes").replace("change_log", changes)
        for old, offset in self.session.rows(sql, where):
            yield f"offset {offset} deletes key {old}, of which no row is known: its new key cannot be told"


def sums_by_batch(
    session: Session, batch_sql: str, offset: str, offsets: OffsetRange, table: str
) -> dict[str, Checksum]:
    """Count, sum and xor of row hashes by batch of the table, of the rows of ``batch_sql``."""
    sql = statement("rebuild/batch_sums").replace(
        "$rows", f"(select {offset} as place, _row_hash as h from ({batch_sql}))"
    )
    rows = session.rows(sql, {"table": table, "first": offsets.first, "last": offsets.last})
    return {batch: Checksum(rows=int(count), sum=int(total), xor=int(xor)) for batch, count, total, xor in rows}


@frozen(kw_only=True)
class Switch:
    """What the file takes over: batches' checksums under the new shape, the rows of T_state that the log no longer holds."""

    shape: Shape
    checksums: dict[str, Checksum]
    base: pa.Table | None
    folded: int

    def make(self, session: Session) -> None:
        """Call inside a transaction, with nothing appended and nothing sent."""
        name = self.shape.old.name
        if self.shape.rekeyed:
            session.execute(statement("rebuild/take_keys"), {"table": name})
            session.execute("delete from rebuild_keys where table_name = ?", [name])
        add_schema(session, self.shape.newest, rebuilt=True)
        # what was frozen and not delivered is frozen again, under the new shape
        session.execute("delete from sync_batches where table_name = ? and delivered_at is null", [name])
        table = pa.table(_columns(self.checksums))
        with session.relation(new_checksums=table):
            session.execute(statement("rebuild/take_checksums"), {"table": name})
        reshape(session, self.shape.history, self.base, self.folded)


def _columns(checksums: dict[str, Checksum]) -> dict[str, Any]:
    return {
        "batch_id": pa.array(list(checksums), pa.string()),
        "checksum": pa.array([str(each) for each in checksums.values()], pa.string()),
    }

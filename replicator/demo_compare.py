"""Both sides of the demo asked what they hold, and held against each other and against what was produced.

One function per side; each engine sums the hashes of its own rows. Guarantees that a difference is named down to
offset, key, column and both values. It must never change what it compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from attrs import field, frozen

from replicator.checksum import (
    HashedColumn,
    hashed_columns,
    range_sums_clickhouse,
    range_sums_duckdb,
    row_hashes_clickhouse,
    row_hashes_duckdb,
)
from replicator.database import Session
from replicator.demo_trade_flow import Key, Row
from replicator.model import Checksum
from replicator.schema import TableSchema, quote, quote_clickhouse
from replicator.sink import ClickHouseSink

BUCKET_ROWS = 1000
_CURRENT_AT = "_version"


@frozen(kw_only=True)
class Held:
    """What one side holds of one table: every change, and the rows as they are now."""

    stored: int
    """Physical rows of the history: more than there are changes would be a change stored twice."""
    history: Checksum
    current: Checksum


@frozen(kw_only=True)
class TableResult:
    """One table on both sides. Equal unless ``problems`` says otherwise."""

    table: str
    produced: int
    rows_expected: int
    duckdb: Held
    clickhouse: Held
    problems: tuple[str, ...]


@frozen(kw_only=True)
class Difference:
    """A value that is not the same on both sides."""

    table: str
    offset: int
    key: str
    column: str
    duckdb: Any = field(repr=str)
    clickhouse: Any = field(repr=str)

    def __str__(self) -> str:
        return (
            f"{self.table}, offset {self.offset}, key {self.key}, {self.column}: "
            f"{self.duckdb} in DuckDB, {self.clickhouse} in ClickHouse"
        )


@frozen(kw_only=True)
class Sides:
    """The log, opened by us alone, and ClickHouse."""

    log: Session
    sink: ClickHouseSink

    def in_duckdb(self, schema: TableSchema) -> Held:
        log_name = quote(schema.log_name)
        current = range_sums_duckdb(quote(schema.name), _row_columns(schema), _CURRENT_AT)
        return Held(
            stored=self.log.rows(f"select count(*) from {log_name}")[0][0],
            history=_checksum(self.log.rows(range_sums_duckdb(log_name, hashed_columns(schema), "_offset"))),
            current=_checksum(self.log.rows(current)),
        )

    def in_clickhouse(self, schema: TableSchema) -> Held:
        log_name = quote_clickhouse(schema.log_name)
        history = range_sums_clickhouse(f"(select * from {log_name} final)", hashed_columns(schema), "_offset")
        current = range_sums_clickhouse(quote_clickhouse(schema.name), _row_columns(schema), _CURRENT_AT)
        return Held(
            stored=self.sink.scalar(f"select count() from {log_name}"),
            history=_checksum(self.sink.rows(history)),
            current=_checksum(self.sink.rows(current)),
        )

    def compare(self, schema: TableSchema, produced: int, expected: Mapping[Key, Row]) -> TableResult:
        """Count and checksum on both sides, and each current row against the one that was produced last."""
        duckdb, clickhouse = self.in_duckdb(schema), self.in_clickhouse(schema)
        sides = (
            ("DuckDB", duckdb, self._current(schema, self.log)),
            ("ClickHouse", clickhouse, self._current(schema, self.sink)),
        )
        problems = [problem for side in sides for problem in _against_produced(*side, produced, expected)]
        if duckdb.history != clickhouse.history:
            problems.append("the history differs between DuckDB and ClickHouse")
        if duckdb.current != clickhouse.current:
            problems.append("the current rows differ between DuckDB and ClickHouse")
        return TableResult(
            table=schema.name,
            produced=produced,
            rows_expected=len(expected),
            duckdb=duckdb,
            clickhouse=clickhouse,
            problems=tuple(problems),
        )

    def _current(self, schema: TableSchema, side: Session | ClickHouseSink) -> dict[Key, Row]:
        """The same words ask either side."""
        names = [column.name for column in schema.columns]
        rows = side.rows(f"select {', '.join(names)} from {schema.name}")
        return {
            tuple(row[names.index(name)] for name in schema.key): dict(zip(names, row, strict=True)) for row in rows
        }

    # ── where two histories part ──

    def differences(self, schema: TableSchema, limit: int) -> list[Difference]:
        """The first ``limit``: sums per bucket of offsets, the hashes of the rows, the columns of those that differ."""
        found = (
            difference
            for first in self._buckets_apart(schema)
            for offset in self._offsets_apart(schema, first, first + BUCKET_ROWS - 1)
            for difference in self._columns_apart(schema, offset)
        )
        return list(islice(found, limit))

    def _buckets_apart(self, schema: TableSchema) -> list[int]:
        columns = hashed_columns(schema)
        ours = range_sums_duckdb(quote(schema.log_name), columns, "_offset", BUCKET_ROWS)
        theirs = range_sums_clickhouse(_final(schema), columns, "_offset", BUCKET_ROWS)
        return _apart(self.log.rows(ours), self.sink.rows(theirs))

    def _offsets_apart(self, schema: TableSchema, first: int, last: int) -> list[int]:
        columns, within = hashed_columns(schema), f"where _offset between {first} and {last}"
        ours = row_hashes_duckdb(f"(select * from {quote(schema.log_name)} {within})", columns, "_offset")
        theirs = row_hashes_clickhouse(_final(schema, within), columns, "_offset")
        return _apart(self.log.rows(ours), self.sink.rows(theirs))

    def _columns_apart(self, schema: TableSchema, offset: int) -> list[Difference]:
        names = ["_key", *(column.name for column in hashed_columns(schema))]
        asked = f"select {', '.join(map(quote, names))} from {{}} where _offset = {offset:d}"
        ours = self.log.rows(asked.format(quote(schema.log_name)))
        theirs = self.sink.rows(asked.format(_final(schema)))
        key = str((ours or theirs)[0][0])
        if not ours or not theirs:
            there, gone = ("present", "missing") if ours else ("missing", "present")
            return [Difference(table=schema.name, offset=offset, key=key, column="row", duckdb=there, clickhouse=gone)]
        return [
            Difference(table=schema.name, offset=offset, key=key, column=name, duckdb=here, clickhouse=there)
            for name, here, there in zip(names, ours[0], theirs[0], strict=True)
            if here != there
        ]


def _against_produced(
    side: str, held: Held, rows: Mapping[Key, Row], produced: int, expected: Mapping[Key, Row]
) -> list[str]:
    problems = []
    if held.history.rows < produced:
        problems.append(f"{produced - held.history.rows} of {produced} changes are not in {side}")
    if held.history.rows > produced or held.stored > held.history.rows:
        problems.append(f"{max(held.stored, held.history.rows) - produced} changes are in {side} twice")
    missing, surplus = expected.keys() - rows.keys(), rows.keys() - expected.keys()
    stale = sum(rows[key] != _as_held(expected[key]) for key in expected.keys() & rows.keys())
    for count, what in ((len(missing), "missing"), (len(surplus), "there, though deleted"), (stale, "not as produced")):
        if count:
            problems.append(f"{count} current rows are {what} in {side}")
    return problems


def _as_held(row: Row) -> Row:
    """Both databases answer instants in UTC without a zone."""
    return {
        name: value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value
        for name, value in row.items()
    }


def _final(schema: TableSchema, where: str = "") -> str:
    return f"(select * from {quote_clickhouse(schema.log_name)} final {where})"


def _row_columns(schema: TableSchema) -> list[HashedColumn]:
    return [HashedColumn(name=column.name, type=column.type) for column in schema.columns]


def _checksum(rows: Sequence[Sequence[Any]]) -> Checksum:
    count, _, _, total, xor = rows[0]
    return Checksum(rows=count, sum=total, xor=xor)


def _apart(ours: Sequence[Sequence[Any]], theirs: Sequence[Sequence[Any]]) -> list[int]:
    """The first column of every row that is not the same on both sides."""
    left, right = ({row[0]: tuple(row[1:]) for row in rows} for rows in (ours, theirs))
    return sorted(at for at in left.keys() | right.keys() if left.get(at) != right.get(at))

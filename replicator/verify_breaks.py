"""Domain breaks: the sums and counts that a table declares, as of its checkpoint, on both sides.

Guarantees: sums are exact (integers and decimals only) and of the same changes, whatever is delivered meanwhile: both
sides take each key's last change of the range compared, less those which the sink need not have. Only reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from replicator.checksum import HashedColumn, row_hash_clickhouse, row_hash_duckdb
from replicator.column_types import Kind
from replicator.database import Session
from replicator.schema import Column, DeclaredSums, TableSchema, quote, quote_clickhouse
from replicator.sink import ClickHouseSink
from replicator.state import as_of_sql
from replicator.verify_report import Break
from replicator.verify_rows import Scope

BREAKS_MAX = 10_000


def breaks(
    session: Session,
    sink: ClickHouseSink,
    pipeline: str,
    history: Sequence[TableSchema],
    sums: DeclaredSums,
    scope: Scope,
) -> list[Break]:
    """Groups that differ, at most BREAKS_MAX."""
    schema = history[-1]
    columns = {column.name: column for column in schema.columns}
    summed = [columns[name] for name in sums.columns]
    by = [columns[name] for name in sums.by]
    ours = _by_group(session.rows(_log_sql(history, by, summed, scope)), len(by))
    theirs = _by_group(sink.rows(_sink_sql(schema, by, summed, scope), {"pipeline": pipeline}), len(by))
    found: list[Break] = []
    for group in ours.keys() | theirs.keys():
        found += _compared(ours.get(group), theirs.get(group), sums)
    found.sort(key=lambda each: (tuple(str(value) for value in each.group.values()), each.column))
    return found[:BREAKS_MAX]


@frozen(kw_only=True)
class _Group:
    names: tuple[str | None, ...]
    values: tuple[str | None, ...]
    """The count, then the sums, as exact texts."""


def _compared(ours: _Group | None, theirs: _Group | None, sums: DeclaredSums) -> list[Break]:
    either = ours or theirs
    assert either is not None
    group = dict(zip(sums.by, either.names, strict=True))
    found = []
    for place, column in enumerate(("count", *sums.columns)):
        log, sink = (None if side is None else side.values[place] for side in (ours, theirs))
        if log != sink:
            found.append(Break(group=group, column=column, log=log, sink=sink))
    return found


def _by_group(rows: Sequence[Sequence[Any]], names: int) -> Mapping[int, _Group]:
    return {
        int(row[0]): _Group(
            names=tuple(None if value is None else str(value) for value in row[1 : 1 + names]),
            values=tuple(None if value is None else str(value) for value in row[1 + names :]),
        )
        for row in rows
    }


def _hashed(columns: Sequence[Column]) -> list[HashedColumn]:
    return [HashedColumn(name=column.name, type=column.type) for column in columns]


def _log_sql(history: Sequence[TableSchema], by: Sequence[Column], summed: Sequence[Column], scope: Scope) -> str:
    group = row_hash_duckdb(_hashed(by)) if by else "0::ubigint"
    names = [f"any_value({quote(column.name)})::varchar" for column in by]
    totals = [f"sum({quote(column.name)})::varchar" for column in summed]
    columns = ", ".join([f"{group} as g", *names, "count(*)::varchar", *totals])
    considered = f"log_offset >= {scope.offsets.first:d} and {scope.known.but_duckdb()}"
    rows = as_of_sql(history, str(scope.offsets.last), considered)
    return f"select {columns} from ({rows}) group by g"


def _sink_sql(schema: TableSchema, by: Sequence[Column], summed: Sequence[Column], scope: Scope) -> str:
    group = row_hash_clickhouse(_hashed(by)) if by else "toUInt64(0)"
    names = [f"toString(any({quote_clickhouse(column.name)}))" for column in by]
    totals = [_total_clickhouse(column) for column in summed]
    wanted = list(dict.fromkeys([*(c.name for c in by), *(c.name for c in summed)]))
    key = [f"{quote_clickhouse(name)} as k{place}" for place, name in enumerate(schema.key)]
    taken = [f"{quote_clickhouse(name)} as c{place}" for place, name in enumerate(wanted)]
    rows = (
        f"select {', '.join([*key, *taken])}, _version, _op from {quote_clickhouse(schema.log_name)} final "
        f"where _pipeline = {{pipeline:String}} and _offset between {scope.offsets.first:d} and {scope.offsets.last:d} "
        f"and {scope.known.but_clickhouse('_offset')}"
    )
    # argMax skips NULL unless it comes in a tuple
    latest = [f"argMax(tuple(c{place}), _version).1 as {quote_clickhouse(name)}" for place, name in enumerate(wanted)]
    keys = ", ".join(f"k{place}" for place in range(len(key)))
    inner = f"select {', '.join(['argMax(_op, _version) as last_op', *latest])} from ({rows}) group by {keys}"
    columns = ", ".join([f"{group} as g", *names, "toString(count())", *totals])
    return f"select {columns} from ({inner}) where last_op != 'd' group by g"


def _total_clickhouse(column: Column) -> str:
    name = quote_clickhouse(column.name)
    if column.type.kind is Kind.DECIMAL:
        scale = column.type.scale
        return f"if(count({name}) = 0, NULL, toDecimalString(sum(toDecimal256({name}, {scale})), {scale}))"
    return f"if(count({name}) = 0, NULL, toString(sum(toInt256({name}))))"

"""What must hold beside equal rows: gapless offsets, whole ledgers, promise 3, state that follows from the log.

Guarantees: each broken invariant is named with what it is about. Only reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from attrs import frozen

from replicator.checksum import hashed_columns, row_hash_clickhouse, row_hash_duckdb, sums_clickhouse, sums_duckdb
from replicator.database import Session, statement
from replicator.schema import TableSchema, quote, quote_clickhouse
from replicator.sink import ClickHouseSink

STATE_BUCKETS = 256
NAMED_MAX = 1_000


@frozen(kw_only=True)
class Problem:
    """One broken invariant. ``key`` where it is about one row of T."""

    invariant: str
    detail: str
    key: str | None = None
    version: int | None = None
    """The version at fault in T_state."""
    batch: tuple[str, int, int] | None = None
    """The batch (table, first, last) whose row is at fault in the sink's ledger."""


def log_problems(session: Session, sink: ClickHouseSink, pipeline: str, failed_table: str) -> list[Problem]:
    """The log's offsets, the batches' chain, the sink's ledger against ours."""
    return [*_offsets(session), *_batches(session), *_ledger(session, sink, pipeline, failed_table)]


def _offsets(session: Session) -> Iterator[Problem]:
    count, distinct, first, last = session.row(statement("verify/log_shape")) or (0, 0, 1, 0)
    if count != distinct or distinct != last - first + 1:
        detail = f"{count} changes, {distinct} different offsets in {first}..{last}"
        yield Problem(invariant="offsets are gapless and single", detail=detail)


def _batches(session: Session) -> Iterator[Problem]:
    for table, first, last in session.rows(statement("verify/uncovered")):
        yield Problem(
            invariant="every offset below the checkpoint was delivered or parked",
            detail=f"{table}: no delivered batch covers {first}..{last}",
        )


def _ledger(session: Session, sink: ClickHouseSink, pipeline: str, failed_table: str) -> Iterator[Problem]:
    """Every delivered batch of ours has its row in the sink's ledger, with the same checksum."""
    sql = (
        "select table_name, first_offset, last_offset, checksum, status from replicator_batches final "
        "where pipeline = {pipeline:String}"
    )
    theirs = {
        (table, first, last): (checksum, status)
        for table, first, last, checksum, status in sink.rows(sql, {"pipeline": pipeline})
    }
    parked = set(
        session.rows(f"select table_name, first_offset, last_offset from {failed_table} where status <> 'resolved'")
    )
    ours = session.rows(
        "select table_name, first_offset, last_offset, checksum from sync_batches where delivered_at is not null"
    )
    for table, first, last, checksum in ours:
        found = theirs.get((table, first, last))
        if found is None and (table, first, last) not in parked:
            detail = f"{table}: {first}..{last} is not in it"
            yield Problem(invariant="the sink's ledger is whole", detail=detail, batch=(table, first, last))
        elif found is not None and found[0] != checksum and (table, first, last) not in parked:
            detail = f"{table}: {first}..{last} has checksum {found[0]}, ours is {checksum}"
            yield Problem(invariant="the sink's ledger tells the truth", detail=detail, batch=(table, first, last))


def state_problems(session: Session, sink: ClickHouseSink, schema: TableSchema) -> list[Problem]:
    """T on both sides, key by key; keys that changed since the last delivery are left out."""
    columns = [c for c in hashed_columns(schema) if c.name != "_entry_id"]
    key = [column.name for column in schema.key_columns]
    ours_key = "concat_ws(chr(31), " + ", ".join(f"{quote(k)}::varchar" for k in key) + ")"
    bucket_ours = f"(_version % {STATE_BUCKETS})"
    ours = session.rows(
        f"select {bucket_ours} as b, {sums_duckdb('h', '_version')} "
        f"from (select _version, {row_hash_duckdb(columns)} as h from {quote(schema.name)}) group by b"
    )
    name = quote_clickhouse(schema.name)
    theirs = sink.rows(
        f"select _version % {STATE_BUCKETS} as b, {sums_clickhouse('h', '_version')} "
        f"from (select _version, {row_hash_clickhouse(columns)} as h from {name}) group by b"
    )
    unfed = _unfed(sink, schema)
    left, right = _buckets(ours), _buckets(theirs)
    wrong = sorted(b for b in left.keys() | right.keys() if left.get(b) != right.get(b))
    if not wrong:
        return unfed
    listed = ", ".join(map(str, wrong))
    mine = session.rows(
        f"select _version, {row_hash_duckdb(columns)}, {ours_key} from {quote(schema.name)} where {bucket_ours} in ({listed})"
    )
    yours = sink.rows(
        f"select _version, {row_hash_clickhouse(columns)} from {name} where _version % {STATE_BUCKETS} in ({listed})"
    )
    found = _state_differences(session, schema, mine, yours)
    named = {problem.version for problem in found}
    return [*found, *(problem for problem in unfed if problem.version not in named)]


def _unfed(sink: ClickHouseSink, schema: TableSchema) -> list[Problem]:
    """Keys whose last change in T_log never reached T_state: invisible for a tombstone, until an old row comes late."""
    key = ", ".join(quote_clickhouse(column.name) for column in schema.key_columns)
    log_table, state = quote_clickhouse(schema.log_name), quote_clickhouse(schema.state_name)
    rows = sink.rows(
        f"with fed as (select {key}, max(_version) as reached from {state} group by {key}) "
        f"select wanted, last_key from (select {key}, max(_version) as wanted, argMax(_key, _version) as last_key "
        f"from {log_table} group by {key}) as logged left join fed using ({key}) where wanted > reached limit {NAMED_MAX:d}"
    )
    invariant = f"{schema.state_name} has the last change of every key in {schema.log_name}"
    return [
        Problem(invariant=invariant, detail=f"version {version} is not in it", key=last_key, version=version)
        for version, last_key in rows
    ]


def _state_differences(
    session: Session, schema: TableSchema, ours: Sequence[Sequence[Any]], theirs: Sequence[Sequence[Any]]
) -> list[Problem]:
    """Rows of T by version: a version names one change, so it names the row on both sides."""
    pending = {v for (v,) in session.rows(statement("verify/undelivered_versions"), {"table": schema.name})}
    recent = {k for (k,) in session.rows(statement("verify/undelivered_keys"), {"table": schema.name})}
    left = {version: (digest, key) for version, digest, key in ours}
    right = dict(theirs)
    problems = []
    for version in sorted(left.keys() | right.keys()):
        digest, key = left.get(version, (None, None))
        if version in pending or digest == right.get(version):
            continue
        if digest is None:
            found = session.row(
                "select key from change_log where version = ? and table_name = ?", [version, schema.name]
            )
            key = found[0] if found else None
            if key in recent:
                continue
            detail = f"version {version} is current in the sink only"
        elif version not in right:
            detail = f"version {version} is current in the log only"
        else:
            detail = f"version {version} has other values in the sink"
        invariant = f"{schema.name} is the same on both sides"
        problems.append(Problem(invariant=invariant, detail=detail, key=key, version=version))
    return problems[:NAMED_MAX]


def _buckets(rows: Sequence[Sequence[int]]) -> dict[int, tuple[int, ...]]:
    return {int(row[0]): tuple(map(int, row[1:])) for row in rows}

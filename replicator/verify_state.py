"""T key by key: what both sides show as current, and what the log says is.

Guarantees: a key is called wrong only if nothing that the sink has not yet got could explain it; the side at fault is
the one that differs from the key's newest logged change. Only reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from attrs import define, frozen

from replicator.checksum import HashedColumn, hashed_columns, row_hash_clickhouse, row_hash_duckdb
from replicator.column_types import Kind
from replicator.compare import Difference, Rows, Side, unequal_places
from replicator.database import Session, statement
from replicator.schema import TableSchema, quote, quote_clickhouse
from replicator.sink import ClickHouseSink
from replicator.typed import key_sql
from replicator.verify_known import Known
from replicator.verify_report import StateFault

KEYS_PER_BUCKET = 64
BUCKETS_MIN, BUCKETS_MAX = 256, 65_536
FAULTS_MAX = 100_000
"""Keys at fault that are looked into in one run; when these are mended the next run finds the rest."""
KEYS_AT_ONCE = 5_000_000


@frozen(kw_only=True)
class _Shown:
    """What one side shows of a key."""

    version: int
    digest: int
    key: str
    rows: int = 1


@frozen(kw_only=True)
class _Truth:
    """What the log says of a key: its newest change at or below the checkpoint, None of it where the key is unknown."""

    version: int | None = None
    digest: int | None = None
    unsettled: bool = False
    """It has changes that the sink need not have yet."""


@define
class StateComparison:
    """One table's T. ``low`` is the oldest retained offset, ``known`` are parked or discarded ranges."""

    session: Session
    sink: ClickHouseSink
    pipeline: str
    schema: TableSchema
    checkpoint: int
    low: int
    known: Known
    exists: bool
    keys: int = 0

    def run(self) -> list[StateFault]:
        """The keys at fault, at most FAULTS_MAX of them."""
        buckets = self._buckets()
        ours = _by_bucket(self.session.rows(self._log_sums(buckets)))
        theirs = _by_bucket(self.sink.rows(self._sink_sums(buckets), self._where)) if self.exists else {}
        self.keys = sum(rows for rows, _, _ in ours.values())
        wrong = sorted(b for b in ours.keys() | theirs.keys() if ours.get(b) != theirs.get(b))
        found = self._look_into(wrong, buckets) if wrong else []
        named = {fault.key_hash for fault in found}
        return [*found, *(fault for fault in self._unfed() if fault.key_hash not in named)][:FAULTS_MAX]

    @property
    def _where(self) -> dict[str, Any]:
        return {"pipeline": self.pipeline, "last": self.checkpoint}

    # ── what the sides show ──

    def _buckets(self) -> int:
        row = self.session.row(f"select count(*) from {quote(self.schema.state_name)}")
        wanted = (row[0] if row else 0) // KEYS_PER_BUCKET
        return min(BUCKETS_MAX, max(BUCKETS_MIN, 1 << max(0, wanted - 1).bit_length()))

    @property
    def _columns(self) -> list[HashedColumn]:
        """What T holds of what is hashed."""
        return [column for column in hashed_columns(self.schema) if column.name != "_entry_id"]

    @property
    def _key_columns(self) -> list[HashedColumn]:
        return [HashedColumn(name=column.name, type=column.type) for column in self.schema.key_columns]

    def _log_current(self, *more: str) -> str:
        columns = [f"{row_hash_duckdb(self._key_columns)} as k", f"{row_hash_duckdb(self._columns)} as h", *more]
        return f"select {', '.join(columns)} from {quote(self.schema.name)} where _offset <= {self.checkpoint:d}"

    def _sink_current(self, *more: str) -> str:
        """T is a view of T_state; asked for is this pipeline's part of it."""
        columns = [
            f"{row_hash_clickhouse(self._key_columns)} as _k", f"{row_hash_clickhouse(self._columns)} as _h", *more
        ]  # fmt: skip
        # ClickHouse would take a column named k for the alias k, so none of the aliases may be a column's name
        inner = (
            f"select {', '.join(columns)} from {quote_clickhouse(self.schema.state_name)} final "
            "where _pipeline = {pipeline:String} and _offset <= {last:Int64}"
        )
        return f"select _k as k, _h as h, * except (_k, _h) from ({inner})"

    def _log_sums(self, buckets: int) -> str:
        return (
            f"select k & {buckets - 1:d} as b, count(*), (sum(h) % 18446744073709551616::hugeint)::ubigint, bit_xor(h) "
            f"from ({self._log_current()}) group by b"
        )

    def _sink_sums(self, buckets: int) -> str:
        inner = self._sink_current()
        return f"select bitAnd(k, {buckets - 1:d}) as b, count(), sum(h), groupBitXor(h) from ({inner}) group by b"

    # ── the keys that differ ──

    def _look_into(self, wrong: Sequence[int], buckets: int) -> list[StateFault]:
        listed = list(wrong)
        ours = self.session.arrow(
            f"select k as place, h from ({self._log_current()}) where k & {buckets - 1:d} in (select unnest($listed))",
            {"listed": listed},
        )
        theirs = Rows.none()
        if self.exists:
            sql = f"select k as place, h from ({self._sink_current()}) where bitAnd(k, {buckets - 1:d}) in {{listed:Array(UInt64)}}"
            theirs = Rows.of(_signed(self.sink.arrow(sql, {**self._where, "listed": listed})))
        unequal = unequal_places(Rows.of(_signed(ours)), theirs)[:FAULTS_MAX]
        found: list[StateFault] = []
        for at in range(0, len(unequal), 10_000):
            found += self._classed(unequal[at : at + 10_000].astype(np.int64).view(np.uint64).tolist())
        return found

    def _classed(self, key_hashes: list[int]) -> Iterator[StateFault]:
        log_rows, sink_rows = self._log_rows(key_hashes), self._sink_rows(key_hashes)
        keys = {k: row.key for k, row in [*sink_rows.items(), *log_rows.items()]}
        truths = self._truths(sorted(set(keys.values())))
        for key_hash, key in keys.items():
            truth, ours, theirs = truths.get(key, _Truth()), log_rows.get(key_hash), sink_rows.get(key_hash)
            if truth.unsettled:
                continue
            if truth.version is None and self.low > 1 and ours is not None:
                truth = _Truth(version=ours.version, digest=ours.digest)
            for side, shown in ((Side.LOG, ours), (Side.SINK, theirs)):
                kind = _kind(truth, shown)
                if kind is not None:
                    yield StateFault(
                        key_hash=key_hash,
                        key=key,
                        kind=kind,
                        side=side,
                        log_version=ours.version if side is Side.LOG and ours else truth.version,
                        sink_version=theirs.version if theirs else None,
                    )

    def _log_rows(self, key_hashes: list[int]) -> dict[int, _Shown]:
        sql = self._log_current("_version", f"{key_sql(self.schema)} as key")
        rows = self.session.rows(
            f"select k, h, _version, key from ({sql}) where k in (select unnest($listed::ubigint[]))",
            {"listed": key_hashes},
        )
        times = Counter(row[0] for row in rows)
        newest_last = sorted(rows, key=lambda row: row[2])
        return {k: _Shown(version=version, digest=h, key=key, rows=times[k]) for k, h, version, key in newest_last}

    def _sink_rows(self, key_hashes: list[int]) -> dict[int, _Shown]:
        if not self.exists:
            return {}
        texts = [f"{_text_clickhouse(c)} as _t{place}" for place, c in enumerate(self.schema.key_columns)]
        names = ", ".join(f"_t{place}" for place in range(len(texts)))
        sql = f"select k, h, _version, {names} from ({self._sink_current('_version', *texts)}) where k in {{listed:Array(UInt64)}}"
        rows = self.sink.rows(sql, {**self._where, "listed": key_hashes})
        keys = self._canonical([row[3:] for row in rows])
        return {
            row[0]: _Shown(version=row[2], digest=row[1], key=key) for row, key in zip(rows, keys, strict=True)
        }  # fmt: skip

    def _canonical(self, texts: Sequence[Sequence[str]]) -> list[str]:
        """The canonical keys of key columns given as ClickHouse's texts."""
        if not texts:
            return []
        columns = self.schema.key_columns
        given = {f"t{place}": [row[place] for row in texts] for place in range(len(columns))}
        given["place"] = list(range(len(texts)))  # type: ignore[assignment]
        typed = ", ".join(f"{_from_text(c, f't{place}')} as {quote(c.name)}" for place, c in enumerate(columns))
        with self.session.relation(_sink_keys=pa.table(given)):
            sql = f"select {key_sql(self.schema)} from (select place, {typed} from _sink_keys) order by place"
            return [key for (key,) in self.session.rows(sql)]

    # ── what the log says ──

    def _truths(self, keys: list[str]) -> dict[str, _Truth]:
        """By key: its newest change at or below the checkpoint, and whether anything newer or parked may explain it."""
        where = {"table": self.schema.name, "keys": keys, "checkpoint": self.checkpoint}
        rows = self.session.rows(statement("verify/newest"), where)
        offsets = [offset for _, offset, _ in rows if offset is not None]
        digests = self._digests(offsets)
        return {key: self._truth(offset, latest, digests) for key, offset, latest in rows}

    def _truth(self, offset: int | None, latest: int, digests: Mapping[int, tuple[int, int, str]]) -> _Truth:
        parked = offset is not None and offset in self.known
        if parked or latest > self.checkpoint:
            return _Truth(unsettled=True)
        if offset is None or offset not in digests:
            return _Truth()
        version, digest, op = digests[offset]
        return _Truth() if op == "d" else _Truth(version=version, digest=digest)

    def _digests(self, offsets: list[int]) -> dict[int, tuple[int, int, str]]:
        if not offsets:
            return {}
        listed = ", ".join(f"{offset:d}" for offset in offsets)
        sql = (
            f"select _offset, _version, {row_hash_duckdb(self._columns)}, _op from {quote(self.schema.log_name)} "
            f"where _offset between {min(offsets):d} and {max(offsets):d} and _offset in ({listed})"
        )
        return {at: (version, digest, op) for at, version, digest, op in self.session.rows(sql)}

    # ── what T_log has and T_state has not ──

    def _unfed(self) -> Iterator[StateFault]:
        """Keys whose last change in T_log never reached T_state: invisible for a tombstone, until an old row comes late."""
        if not self.exists:
            return
        total = self.sink.scalar(f"select count() from {quote_clickhouse(self.schema.log_name)}")
        passes = 1 + int(total) // KEYS_AT_ONCE
        for part in range(passes):
            for key_hash, key, version, reached in self.sink.rows(self._unfed_sql(part, passes), self._where):
                yield StateFault(
                    key_hash=key_hash,
                    key=key,
                    kind=Difference.MISSING,
                    side=Side.SINK,
                    log_version=version,
                    sink_version=reached or None,
                )

    def _unfed_sql(self, part: int, passes: int) -> str:
        name, state = quote_clickhouse(self.schema.log_name), quote_clickhouse(self.schema.state_name)
        k = f"{row_hash_clickhouse(self._key_columns)} as k"
        mine = f"_pipeline = {{pipeline:String}} and k % {passes:d} = {part:d}"
        logged = (
            f"select {k}, max(_version) as wanted, argMax(_key, _version) as last_key from {name} "
            f"where {mine} and _offset between {self.low:d} and {{last:Int64}} and {self.known.but_clickhouse('_offset')} group by k"
        )
        fed = f"select {k}, max(_version) as reached from {state} where {mine} group by k"
        return (
            f"select k, last_key, wanted, reached from ({logged}) as logged left join ({fed}) as fed using (k) "
            f"where wanted > reached limit {FAULTS_MAX:d}"
        )


def _kind(truth: _Truth, shown: _Shown | None) -> Difference | None:
    if shown is None:
        return None if truth.version is None else Difference.MISSING
    if truth.version is None:
        return Difference.EXTRA
    if shown.rows > 1:
        return Difference.DOUBLED
    same = (shown.version, shown.digest) == (truth.version, truth.digest)
    return None if same else Difference.DIFFERENT


def _signed(table: pa.Table) -> pa.Table:
    """Key hashes as places, which are signed."""
    places = table["place"].to_numpy().astype(np.uint64, copy=False).view(np.int64)
    return pa.table({"place": places, "h": table["h"]})


def _by_bucket(rows: Sequence[Sequence[int]]) -> dict[int, tuple[int, int, int]]:
    return {int(b): (int(count), int(total), int(xor)) for b, count, total, xor in rows}


def _text_clickhouse(column: Any) -> str:
    name = quote_clickhouse(column.name)
    return f"hex({name})" if column.type.kind is Kind.BLOB else f"toString({name})"


def _from_text(column: Any, text: str) -> str:
    return f"unhex({text})" if column.type.kind is Kind.BLOB else f"cast({text} as {column.type.duckdb})"

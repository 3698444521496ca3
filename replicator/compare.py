"""What two sides of a table hold, as SQL and as differences, and which side is right: the reasoning of verify. Pure.

Three witnesses speak of every delivered batch: the log, the sink, and the checksum that was frozen before the first
send. Guarantees: both sides are hashed over the same columns under the same schema version; a side is called wrong
only where the other one, or a mixture of both, adds up to what was frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
from attrs import field, frozen

from replicator.checksum import row_hash_clickhouse, row_hash_duckdb
from replicator.lanes import ROW_HASH, Lane
from replicator.model import NOTHING, Checksum, OffsetRange
from replicator.schema import quote, quote_clickhouse

CHOICES_MAX = 1 << 16
"""Mixtures of both sides that are tried to find which one was frozen."""
Offsets = np.ndarray[Any, np.dtype[np.int64]]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]


class Difference(StrEnum):
    """How a row of the side at fault differs from what it should be."""

    MISSING = "missing"
    EXTRA = "extra"
    DIFFERENT = "different"
    DOUBLED = "doubled"


class Side(StrEnum):
    """Who is at fault. ``unknown``: the two sides differ, and neither adds up to what was frozen."""

    SINK = "sink"
    LOG = "log"
    UNKNOWN = "unknown"


@frozen(kw_only=True)
class Mismatch:
    """One row at fault. ``columns`` maps the columns that differ to (log's value, sink's value), as text."""

    table: str
    offset: int
    kind: Difference
    side: Side
    key: str | None = None
    columns: Mapping[str, tuple[str | None, str | None]] = field(factory=dict)


@frozen(kw_only=True)
class Segment:
    """Consecutive delivered batches of one schema version, and what their frozen checksums add up to."""

    schema_version: int
    offsets: OffsetRange
    batches: int
    frozen: Checksum


@frozen(kw_only=True)
class Fault:
    """Offsets at fault in the same way on the same side."""

    side: Side
    kind: Difference
    offsets: Offsets


# ── SQL ──


def log_sums_sql(lane: Lane, parts: Sequence[OffsetRange]) -> str:
    """DuckDB: (part, rows, hash sum, hash xor) per part of a range, what lies in none left out; parameters first, last."""
    column = lane.offset_column
    branches = " ".join(f"when {column} between {r.first:d} and {r.last:d} then {part}" for part, r in enumerate(parts))
    return (
        f"select case {branches} end as _part, count(*), "
        f"(coalesce(sum({ROW_HASH}), 0) % 18446744073709551616::hugeint)::ubigint, bit_xor({ROW_HASH}) "
        f"from ({lane.batch_sql}) where _part is not null group by _part"
    )


def sink_sums_sql(lane: Lane, parts: Sequence[OffsetRange]) -> str:
    """ClickHouse: the same; parameters pipeline, first, last."""
    branches = ", ".join(f"_place between {r.first:d} and {r.last:d}, {part}" for part, r in enumerate(parts))
    return (
        f"select multiIf({branches}, -1) as part, count(), sum(_h), groupBitXor(_h) from ({_hashed(lane)}) "
        "where part >= 0 group by part"
    )


def log_hashes_sql(lane: Lane) -> str:
    """DuckDB: (place, h) of every row of a range; parameters first, last."""
    return f"select {lane.offset_column} as place, {ROW_HASH} as h from ({lane.batch_sql})"


def sink_hashes_sql(lane: Lane) -> str:
    """ClickHouse: the same; parameters pipeline, first, last."""
    return f"select _place as place, _h as h from ({_hashed(lane)})"


def _hashed(lane: Lane) -> str:
    """A row under another schema version than its batch gets another hash. No table has columns of these names."""
    version = "schema_version" if lane.schema_version == 0 else "_schema_version"
    hashed = f"{lane.hash_clickhouse} + ({version} != {lane.schema_version:d})"
    return (
        f"select {lane.offset_column} as _place, toUInt64({hashed}) as _h from {quote_clickhouse(lane.target)} final "
        f"where _pipeline = {{pipeline:String}} and _place between {{first:Int64}} and {{last:Int64}}"
    )


def sink_doubled_sql(lane: Lane, limit: int) -> str:
    """ClickHouse: offsets that one send left there more than once; parameters pipeline, first, last."""
    offset = lane.offset_column
    return (
        f"select distinct {offset} from (select _pipeline, {offset}, _send from {quote_clickhouse(lane.target)} "
        f"where _pipeline = {{pipeline:String}} and {offset} between {{first:Int64}} and {{last:Int64}} "
        f"group by _pipeline, {offset}, _send having count() > 1) limit {limit:d} "
        "settings optimize_aggregation_in_order = 1"
    )


def log_columns_sql(lane: Lane) -> str:
    """DuckDB: per row its offset, then for each hashed column its hash and its text; parameters first, last, offsets."""
    each = ", ".join(f"{row_hash_duckdb([c])}, {quote(c.name)}::varchar" for c in lane.hashed)
    return (
        f"select {lane.offset_column}, {each} from ({lane.typed_sql}) "
        f"where {lane.offset_column} in (select unnest($offsets))"
    )


def sink_columns_sql(lane: Lane) -> str:
    """ClickHouse: the same; parameters pipeline, offsets."""
    each = ", ".join(f"{row_hash_clickhouse([c])}, toString({quote_clickhouse(c.name)})" for c in lane.hashed)
    return (
        f"select {lane.offset_column}, {each} from {quote_clickhouse(lane.target)} final "
        f"where _pipeline = {{pipeline:String}} and {lane.offset_column} in {{offsets:Array(Int64)}}"
    )


def unequal_columns(lane: Lane, ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, tuple[str | None, str | None]]:
    """Columns that differ between two rows of `log_columns_sql` and `sink_columns_sql`, with both texts."""
    found = {}
    for place, column in enumerate(lane.hashed):
        at = 1 + 2 * place
        if ours[at] != theirs[at]:
            found[column.name] = (ours[at + 1], theirs[at + 1])
    return found or {"_schema_version": ("as logged", "another")}


# ── rows ──


@frozen(kw_only=True)
class Rows:
    """(place, hash) of the rows of a range, in the order of places."""

    places: Offsets
    hashes: Hashes

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
        places = table["place"].to_numpy().astype(np.int64, copy=False)
        hashes = table["h"].to_numpy().astype(np.uint64, copy=False)
        order = np.argsort(places, kind="stable")
        return cls(places=places[order], hashes=hashes[order])

    @classmethod
    def none(cls) -> Rows:
        return cls(places=np.empty(0, np.int64), hashes=np.empty(0, np.uint64))

    @classmethod
    def unreadable(cls, place: int) -> Rows:
        """A row whose hash is 0, which no frozen row's is but by a chance of 2^-64."""
        return cls(places=np.array([place], np.int64), hashes=np.zeros(1, np.uint64))

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        places = np.concatenate([part.places for part in parts])
        order = np.argsort(places, kind="stable")
        return cls(places=places[order], hashes=np.concatenate([part.hashes for part in parts])[order])

    def where(self, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Rows:
        return Rows(places=self.places[mask], hashes=self.hashes[mask])

    def within(self, offsets: OffsetRange) -> Rows:
        first, last = np.searchsorted(self.places, [offsets.first, offsets.last + 1])
        return Rows(places=self.places[first:last], hashes=self.hashes[first:last])

    def at(self, place: int) -> list[int]:
        first, last = np.searchsorted(self.places, [place, place + 1])
        return [int(h) for h in self.hashes[first:last]]

    @property
    def checksum(self) -> Checksum:
        return Checksum(
            rows=len(self.places),
            sum=int(np.add.reduce(self.hashes, dtype=np.uint64)),
            xor=int(np.bitwise_xor.reduce(self.hashes, dtype=np.uint64)),
        )


def unequal_places(ours: Rows, theirs: Rows) -> Offsets:
    """Places whose rows are not the same on both sides, in order."""
    if np.array_equal(ours.places, theirs.places) and np.array_equal(ours.hashes, theirs.hashes):
        repeated = ours.places[1:][ours.places[1:] == ours.places[:-1]]
        return np.unique(repeated)
    common, left, right = np.intersect1d(ours.places, theirs.places, return_indices=True)
    parts = [
        common[ours.hashes[left] != theirs.hashes[right]],
        np.setxor1d(ours.places, theirs.places),
        *(side.places[1:][side.places[1:] == side.places[:-1]] for side in (ours, theirs)),
    ]
    return np.unique(np.concatenate(parts))


def faults(ours: Rows, theirs: Rows, frozen: Checksum, beside: Rows | None = None) -> list[Fault]:
    """Who is at fault where, in one batch. ``beside``: rows of the batch that are not compared but were frozen with it."""
    places = unequal_places(ours, theirs)
    if not len(places):
        return []
    alike = ours.where(~np.isin(ours.places, places))
    base = alike.checksum + (beside.checksum if beside else NOTHING)
    unlike, other = (side.where(np.isin(side.places, places)) for side in (ours, theirs))
    if base + unlike.checksum == frozen:
        return _faults_of(Side.SINK, places, right=unlike, wrong=other)
    if base + other.checksum == frozen:
        return _faults_of(Side.LOG, places, right=other, wrong=unlike)
    return _mixed_faults(places, unlike, other, base, frozen)


def merged(found: Sequence[Fault]) -> list[Fault]:
    """One fault for each side and kind."""
    alike: dict[tuple[Side, Difference], list[Offsets]] = {}
    for fault in found:
        alike.setdefault((fault.side, fault.kind), []).append(fault.offsets)
    return [
        Fault(side=side, kind=kind, offsets=np.sort(np.concatenate(parts))) for (side, kind), parts in alike.items()
    ]


def _faults_of(side: Side, places: Offsets, *, right: Rows, wrong: Rows) -> list[Fault]:
    """All of one side's faults, when the other side is right everywhere."""
    missing = np.isin(places, wrong.places, invert=True)
    extra = np.isin(places, right.places, invert=True)
    repeated = wrong.places[1:][wrong.places[1:] == wrong.places[:-1]]
    doubled = np.isin(places, repeated) & ~extra
    kinds = {
        Difference.MISSING: missing,
        Difference.EXTRA: extra,
        Difference.DOUBLED: doubled,
        Difference.DIFFERENT: ~(missing | extra | doubled),
    }
    return [Fault(side=side, kind=kind, offsets=places[mask]) for kind, mask in kinds.items() if mask.any()]


def _mixed_faults(places: Offsets, ours: Rows, theirs: Rows, base: Checksum, frozen: Checksum) -> list[Fault]:
    """Where one side is right here and the other there: the only mixture that adds up to what was frozen."""
    options: list[list[int | None]] = []
    for place in places[:64].tolist():
        left, right = ours.at(place), theirs.at(place)
        absent: list[int | None] = [None] if not left or not right else []
        options.append([*dict.fromkeys([*left, *right]), *absent])
    truth = _chosen(options, base, frozen) if len(places) <= 64 else None
    if truth is None:
        return [Fault(side=Side.UNKNOWN, kind=kind, offsets=at) for kind, at in _kinds(places, ours, theirs)]
    found: list[Fault] = []
    for place, chosen in zip(places.tolist(), truth, strict=True):
        rows = [] if chosen is None else [chosen]
        right = Rows(places=np.full(len(rows), place, np.int64), hashes=np.array(rows, np.uint64))
        for side, held in ((Side.LOG, ours), (Side.SINK, theirs)):
            if held.at(place) != rows:
                one = held.where(held.places == place)
                found += _faults_of(side, np.array([place], np.int64), right=right, wrong=one)
    return found


def _kinds(places: Offsets, ours: Rows, theirs: Rows) -> list[tuple[Difference, Offsets]]:
    return [(f.kind, f.offsets) for f in _faults_of(Side.UNKNOWN, places, right=ours, wrong=theirs)]


def _chosen(options: Sequence[Sequence[int | None]], base: Checksum, frozen: Checksum) -> list[int | None] | None:
    """One option per place so that all add up to what was frozen; None where none does, or too many would have to be tried."""
    if np.prod([float(len(each)) for each in options]) > CHOICES_MAX:
        return None
    rows = np.array([base.rows], np.int64)
    total, xor = np.array([base.sum], np.uint64), np.array([base.xor], np.uint64)
    for each in options:
        hashes = np.array([each_hash or 0 for each_hash in each], np.uint64)
        counts = np.array([each_hash is not None for each_hash in each], np.int64)
        rows = (rows[:, None] + counts).ravel()
        total, xor = (total[:, None] + hashes).ravel(), (xor[:, None] ^ hashes).ravel()
    found = np.flatnonzero((rows == frozen.rows) & (total == np.uint64(frozen.sum)) & (xor == np.uint64(frozen.xor)))
    if len(found) != 1:
        return None
    index, chosen = int(found[0]), []
    for each in reversed(options):
        index, place = divmod(index, len(each))
        chosen.append(each[place])
    return chosen[::-1]

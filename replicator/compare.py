"""What two sides of a table hold, as SQL and as differences: the questions that verify asks. Pure.

Guarantees: both sides are asked for the same columns of the same offsets under the same schema version, so that equal
sums mean equal rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import pyarrow as pa
from attrs import field, frozen

from replicator.checksum import row_hash_clickhouse, row_hash_duckdb, sums_clickhouse, sums_duckdb
from replicator.lanes import ROW_HASH, Lane
from replicator.model import OffsetRange
from replicator.schema import quote, quote_clickhouse

BUCKET_OFFSETS = 100_000
FINE_OFFSETS = 1_000


class Difference(StrEnum):
    """How a row of the sink differs from the log."""

    MISSING = "missing"
    EXTRA = "extra"
    DIFFERENT = "different"


@frozen(kw_only=True)
class Mismatch:
    """One row at fault. ``columns`` maps the columns that differ to (log's value, sink's value), as text."""

    table: str
    offset: int
    kind: Difference
    key: str | None = None
    columns: Mapping[str, tuple[str | None, str | None]] = field(factory=dict)


def excluded_sql(column: str, ranges: Sequence[OffsetRange]) -> str:
    """A condition that leaves out known ranges (parked, discarded)."""
    return "".join(f" and {column} not between {r.first:d} and {r.last:d}" for r in ranges)


def log_sums_sql(lane: Lane, bucket: int, ranges: Sequence[OffsetRange]) -> str:
    """DuckDB: (bucket, rows, first, last, hash sum, hash xor) per bucket of a range; parameters first, last."""
    offset = lane.offset_column
    return (
        f"select ({offset} - 1) // {bucket:d} as bucket, {sums_duckdb(ROW_HASH, offset)} "
        f"from ({lane.batch_sql}) where true{excluded_sql(offset, ranges)} group by bucket"
    )


def sink_sums_sql(lane: Lane, bucket: int, ranges: Sequence[OffsetRange]) -> str:
    """ClickHouse: the same; parameters pipeline, first, last."""
    hashed = f"select {lane.offset_column} as place, {lane.hash_clickhouse} as h from {_rows(lane, ranges)}"
    return f"select intDiv(place - 1, {bucket:d}) as bucket, {sums_clickhouse('h', 'place')} from ({hashed}) group by bucket"


def log_hashes_sql(lane: Lane, ranges: Sequence[OffsetRange]) -> str:
    """DuckDB: (place, h) of every row of a range, in order."""
    offset = lane.offset_column
    return f"select {offset} as place, {ROW_HASH} as h from ({lane.batch_sql}) where true{excluded_sql(offset, ranges)} order by place"


def sink_hashes_sql(lane: Lane, ranges: Sequence[OffsetRange]) -> str:
    """ClickHouse: the same."""
    return (
        f"select {lane.offset_column} as place, {lane.hash_clickhouse} as h from {_rows(lane, ranges)} order by place"
    )


def _rows(lane: Lane, ranges: Sequence[OffsetRange]) -> str:
    offset = lane.offset_column
    version = "schema_version" if lane.schema_version == 0 else "_schema_version"
    return (
        f"{quote_clickhouse(lane.target)} final where _pipeline = {{pipeline:String}} "
        f"and {offset} between {{first:Int64}} and {{last:Int64}} and {version} = {lane.schema_version:d}"
        f"{excluded_sql(offset, ranges)}"
    )


def log_columns_sql(lane: Lane) -> str:
    """DuckDB: per row its offset, then for each hashed column its hash and its text; parameters first, last, offsets."""
    each = ", ".join(f"{row_hash_duckdb([c])}, {quote(c.name)}::varchar" for c in lane.hashed)
    return f"select {lane.offset_column}, {each} from ({lane.batch_sql}) where {lane.offset_column} in (select unnest($offsets))"


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
    return found


Sums = Mapping[int, tuple[int, ...]]


def unequal_buckets(ours: Sums, theirs: Sums) -> list[int]:
    """Buckets whose sums differ, in order."""
    return sorted(bucket for bucket in ours.keys() | theirs.keys() if ours.get(bucket) != theirs.get(bucket))


def unequal_offsets(ours: pa.Table, theirs: pa.Table) -> dict[int, Difference]:
    """Offsets at fault from two tables (place, h), each sorted by offset."""
    left = dict(zip(ours["place"].to_pylist(), ours["h"].to_pylist(), strict=True))
    right = dict(zip(theirs["place"].to_pylist(), theirs["h"].to_pylist(), strict=True))
    found: dict[int, Difference] = {}
    for at in sorted(left.keys() | right.keys()):
        if at not in right:
            found[at] = Difference.MISSING
        elif at not in left:
            found[at] = Difference.EXTRA
        elif left[at] != right[at]:
            found[at] = Difference.DIFFERENT
    return found

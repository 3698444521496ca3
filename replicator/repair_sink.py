"""The sink's side of a repair: send again, remove what the log does not have, renew T_state.

Guarantees: everything goes out under a new send with the versions it was logged with; rows are archived before they
are removed, and only offsets of this pipeline with nothing in flight are; of T_state exact (key, version) pairs are
removed, and the key's newest logged change is sent after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
from attrs import define

from replicator.checksum import HashedColumn, row_hash_clickhouse
from replicator.compare import Difference
from replicator.database import Session, now, statement
from replicator.errors import SinkUnavailable
from replicator.lanes import ROW_HASH, Lane
from replicator.model import GENERIC_LANE, Checksum, OffsetRange, version_of
from replicator.schema import TableSchema, literal_clickhouse, quote_clickhouse
from replicator.sink import ClickHouseSink, Send
from replicator.verify_report import StateFault

T = TypeVar("T")
OFFSETS_MAX = 50_000
"""Offsets sent again in one insert, or removed in one statement."""
REMOVED_AT_ONCE = 2_000


@define
class SinkMender:
    """Mends one pipeline's rows. ``next_send`` hands out send numbers durably, from any thread."""

    session: Session
    sink: ClickHouseSink
    pipeline: str
    timeline: int
    next_send: Callable[[], int]
    sent_rows: int = 0
    removed_rows: int = 0
    state_rows: int = 0

    # ── sending again ──

    def resend(self, lane: Lane, offsets: Sequence[int]) -> int:
        """Send those of the logged changes that are the lane's again. Returns the send's number, 0 if there were none."""
        last_send = 0
        for some in _slices(sorted(offsets), OFFSETS_MAX):
            column = lane.offset_column  # a list of constants is looked at before rows are typed
            sql = f"from ({lane.batch_sql}) where {column} in ({_listed(some)}) order by {column}"
            table = self.session.arrow(sql, {"first": some[0], "last": some[-1]})
            if table.num_rows:
                last_send = self.send(lane, OffsetRange(first=some[0], last=some[-1]), table)
        return last_send

    def send(self, lane: Lane, offsets: OffsetRange, table: pa.Table) -> int:
        """Insert rows of `Lane.batch_sql` under a new send. Returns ``timeline << 48 | send_seq``."""
        send = Send(
            pipeline=self.pipeline,
            target=lane.target,
            offsets=offsets,
            checksum=checksum_of(table),
            send=version_of(self.timeline, self.next_send()),
            attempt=1,
            schema=lane.arrow,
        )
        rows = table.num_rows
        batch = table.drop_columns([ROW_HASH]).combine_chunks()
        batch = batch.append_column("_pipeline", pa.repeat(self.pipeline, rows))
        self.sink.insert(send, batch.append_column("_send", pa.repeat(pa.scalar(send.send, pa.uint64()), rows)))
        self.sent_rows += rows
        return send.send

    # ── removing from T_log ──

    def remove(self, lane: Lane, offsets: Sequence[int]) -> list[str]:
        """Archive and remove rows that the log does not have, and what they left in T_state. Returns their keys."""
        self._none_in_flight(lane, offsets)
        keys: list[str] = []
        for some in _slices(sorted(offsets), REMOVED_AT_ONCE):
            keys += self._remove(lane, some)
        return keys

    def _remove(self, lane: Lane, offsets: Sequence[int]) -> list[str]:
        table, column = quote_clickhouse(lane.target), lane.offset_column
        where = f"_pipeline = {{pipeline:String}} and {column} in {{offsets:Array(Int64)}}"
        parameters = {"pipeline": self.pipeline, "offsets": list(offsets)}
        generic = lane.name == GENERIC_LANE
        version, key = ("version", "ifNull(key, '')") if generic else ("_version", "_key")
        found = self.sink.rows(
            f"select {column}, {version}, {key}, toJSONString(tuple(*)) from {table} where {where}", parameters
        )
        at = now()
        with self.session.transaction():
            for offset, _, _, text in found:
                self.session.execute("insert into removed_rows values (?, ?, ?, ?)", [at, lane.name, offset, text])
        self.delete(lane, f"{column} in ({_listed(offsets)})")
        self.removed_rows += len({row[0] for row in found})
        return [str(row[2]) for row in found]

    def remove_older(self, lane: Lane, offsets: Sequence[int], send: int) -> None:
        """Remove what was there before the last send."""
        for some in _slices(sorted(offsets), REMOVED_AT_ONCE):
            self.delete(lane, f"{lane.offset_column} in ({_listed(some)}) and _send < {send:d}")

    def delete(self, lane: Lane, condition: str) -> None:
        mine = f"_pipeline = {literal_clickhouse(self.pipeline)}"
        self.sink.command(f"delete from {quote_clickhouse(lane.target)} where {mine} and {condition}")

    def _none_in_flight(self, lane: Lane, offsets: Sequence[int]) -> None:
        """Raises SinkUnavailable while an insert that touches the range is running."""
        for running in self.sink.inserting(self.pipeline, lane.target):
            if running.last >= min(offsets) and running.first <= max(offsets):
                raise SinkUnavailable(
                    f"an insert of {running} into {lane.target} is running, so that nothing of it may be removed",
                    hint="repair again when it has ended",
                )

    # ── T_state ──

    def renew_state(self, lane_of: Callable[[int], Lane], schema: TableSchema, faults: Sequence[StateFault]) -> None:
        """Remove the versions at fault of some keys and send each key's newest logged change."""
        keys = sorted({fault.key for fault in faults if fault.key is not None})
        newest = self._newest(schema, keys)
        pairs = {
            (fault.key_hash, version)
            for fault in faults
            for version in self._versions_at_fault(schema, fault, newest.get(fault.key or "", (0, 0, 0))[1])
        }
        self._delete_pairs(schema, sorted(pairs))
        self._send_newest(lane_of, newest)

    def renew_keys(self, lane_of: Callable[[int], Lane], schema: TableSchema, keys: Sequence[str]) -> None:
        """Send the newest logged change of these keys."""
        self._send_newest(lane_of, self._newest(schema, sorted(set(keys))))

    def _send_newest(self, lane_of: Callable[[int], Lane], newest: dict[str, tuple[int, int, int]]) -> None:
        by_version: dict[int, list[int]] = {}
        for offset, _, schema_version in newest.values():
            by_version.setdefault(schema_version, []).append(offset)
        for schema_version, offsets in by_version.items():
            self.resend(lane_of(schema_version), offsets)

    def _newest(self, schema: TableSchema, keys: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """Per key the offset, version and schema version of its newest change that was delivered."""
        rows = self.session.rows(statement("verify/newest_delivered"), {"table": schema.name, "keys": list(keys)})
        return {key: (offset, version, schema_version) for key, offset, version, schema_version in rows}

    def _versions_at_fault(self, schema: TableSchema, fault: StateFault, newest: int) -> list[int]:
        """Versions of a key in T_state that would win over its newest logged change, or stand in its place."""
        if fault.sink_version is None or fault.sink_version < newest:
            return []
        sql = (
            f"select distinct _version from {quote_clickhouse(schema.state_name)} where _pipeline = {{pipeline:String}} "
            f"and {key_hash_clickhouse(schema)} = {{key:UInt64}} and _version >= {{newest:UInt64}}"
        )
        where = {"pipeline": self.pipeline, "key": fault.key_hash, "newest": newest}
        same = fault.kind is Difference.DIFFERENT and fault.sink_version == newest
        return [v for (v,) in self.sink.rows(sql, where) if v > newest or same]

    def _delete_pairs(self, schema: TableSchema, pairs: Sequence[tuple[int, int]]) -> None:
        state, key = quote_clickhouse(schema.state_name), key_hash_clickhouse(schema)
        for some in _slices(pairs, REMOVED_AT_ONCE):
            versions = ", ".join(f"{version:d}" for _, version in some)
            listed = ", ".join(f"({key_hash:d}, {version:d})" for key_hash, version in some)
            mine = f"_pipeline = {literal_clickhouse(self.pipeline)} and _version in ({versions})"
            self.sink.command(f"delete from {state} where {mine} and ({key}, _version) in ({listed})")
            self.state_rows += len(some)


def key_hash_clickhouse(schema: TableSchema) -> str:
    """A key's hash over its typed columns: the same number as verify has."""
    return row_hash_clickhouse([HashedColumn(name=c.name, type=c.type) for c in schema.key_columns])


def checksum_of(table: pa.Table) -> Checksum:
    """Of rows of `Lane.batch_sql`."""
    hashes = table[ROW_HASH].to_numpy()
    return Checksum(
        rows=table.num_rows,
        sum=int(np.add.reduce(hashes, dtype=np.uint64)),
        xor=int(np.bitwise_xor.reduce(hashes, dtype=np.uint64)),
    )


def _listed(offsets: Sequence[int]) -> str:
    return ", ".join(f"{offset:d}" for offset in offsets)


def _slices(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]

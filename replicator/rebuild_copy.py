"""Filling a table's stand-in in ClickHouse: from the log, and from the old table what the log no longer holds.

Guarantees: the stand-in is filled from changes, typed by the table's shape as it is to be, never from typed rows but
for current rows of which no change is left anywhere; it is compared with what was sent before anybody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from attrs import define, field, frozen

from replicator.compare import sink_sums_sql
from replicator.database import Session
from replicator.errors import SinkMisshapen
from replicator.lanes import ROW_HASH, STAND_IN, Lane, typed_lane
from replicator.model import NOTHING, Checksum, OffsetRange
from replicator.pieces import pieces, without
from replicator.rebuild_shape import Shape, sums_by_batch
from replicator.refetch import as_logged, held_changes_sql
from replicator.resend import Ready, ReadyRows, Resender
from replicator.schema import quote_clickhouse
from replicator.sink import ClickHouseSink

WINDOW_OFFSETS = 100_000
PARTS_AT_ONCE = 64


@frozen(kw_only=True)
class Sent:
    """One insert into the stand-in."""

    schema_version: int
    offsets: OffsetRange
    checksum: Checksum


@define(kw_only=True)
class Copy:
    """One table's copy. ``known`` are ranges that are parked or discarded: they stay out."""

    session: Session
    sink: ClickHouseSink
    resender: Resender
    prepare: Callable[[Lane, OffsetRange, int], Ready]
    shape: Shape
    pipeline: str
    batch_rows: int
    known: Sequence[OffsetRange]
    copied: Callable[[int], None]
    """Told of the rows of each insert."""
    sent: list[Sent] = field(factory=list)
    checksums: dict[str, Checksum] = field(factory=dict)
    """By delivered batch, of what was read from the old table: the log does not have it any more."""

    @property
    def stand_in(self) -> str:
        return f"{self.shape.old.name}{STAND_IN}"

    def lane(self, schema_version: int, changes: str = "change_log") -> Lane:
        """Types changes of one version into the stand-in."""
        versions = {schema.schema_version: schema for schema in self.shape.history}
        schema, source = versions[schema_version], self.shape.source(changes)
        return typed_lane(schema, self.shape.newest, source=source, place=self.stand_in)

    # ── from the log ──

    def from_log(self, offsets: OffsetRange) -> None:
        for piece in pieces(self.session, self.shape.old.name, offsets, self.batch_rows):
            lane = self.lane(piece.schema_version)
            for wanted in without(piece.offsets, self.known):
                self._from_log(lane, wanted)

    def _from_log(self, lane: Lane, offsets: OffsetRange) -> None:
        while True:
            ready = self.prepare(lane, offsets, lane.schema_version)
            self._send(lane, ready)
            if ready.offsets.last >= offsets.last:
                return
            offsets = OffsetRange(first=ready.offsets.last + 1, last=offsets.last)

    # ── from the old table ──

    def held(self, below: int) -> Iterator[tuple[OffsetRange, pa.Table]]:
        """The old table's changes below an offset, as they were logged, in windows."""
        log = quote_clickhouse(self.shape.old.log_name)
        where = {"pipeline": self.pipeline, "below": below}
        sql = f"select min(_offset), count() from {log} where _pipeline = {{pipeline:String}} and _offset < {{below:Int64}}"
        first, count = self.sink.rows(sql, where)[0]
        for start in range(first, below if count else first, WINDOW_OFFSETS):
            offsets = OffsetRange(first=start, last=min(below - 1, start + WINDOW_OFFSETS - 1))
            condition = f"_offset between {offsets.first:d} and {offsets.last:d}"
            sql = held_changes_sql(self.shape.old.name, self.shape.old.log_name, condition)
            yield offsets, as_logged(self.sink.arrow(sql, {"pipeline": self.pipeline}))

    def from_old_table(self, below: int) -> None:
        for offsets, changes in self.held(below):
            for version in pc.unique(changes["schema_version"]).to_pylist():
                lane = self.lane(version, "held_changes")
                sql = f"from ({lane.batch_sql}) order by {lane.offset_column}"
                where = {"first": offsets.first, "last": offsets.last}
                with self.session.relation(held_changes=changes):
                    rows = self.session.arrow(sql, where)
                    self._add_up(lane, offsets)
                self._send(lane, self._ready(offsets, rows))
        if not self.shape.reshaped:
            self._state_below(below)

    def _ready(self, offsets: OffsetRange, rows: pa.Table) -> ReadyRows:
        hashes = rows[ROW_HASH].to_numpy()
        total, xor = np.add.reduce(hashes, dtype=np.uint64), np.bitwise_xor.reduce(hashes, dtype=np.uint64)
        table = rows.drop_columns([ROW_HASH]).combine_chunks()
        table = table.append_column("_pipeline", pa.repeat(self.pipeline, table.num_rows))
        return ReadyRows(
            offsets=offsets, table=table, checksum=Checksum(rows=len(hashes), sum=int(total), xor=int(xor))
        )

    def _add_up(self, lane: Lane, offsets: OffsetRange) -> None:
        if self.shape.reshaped:
            sums = sums_by_batch(self.session, lane.batch_sql, lane.offset_column, offsets, self.shape.old.name)
            self.checksums |= {batch: self.checksums.get(batch, NOTHING) + each for batch, each in sums.items()}

    def _state_below(self, below: int) -> None:
        """Current rows whose changes may have gone from T_log, too; versions decide, so that more is no harm."""
        columns = ", ".join(quote_clickhouse(name) for name in self.sink.columns(f"{self.stand_in}_state"))
        self.sink.command(
            f"insert into {quote_clickhouse(self.stand_in + '_state')} ({columns}) "
            f"select {columns} from {quote_clickhouse(self.shape.old.state_name)} "
            f"where _pipeline = {{pipeline:String}} and _offset < {{below:Int64}}",
            settings={"deduplicate_insert": "disable", "async_insert": 0},
            parameters={"pipeline": self.pipeline, "below": below},
        )

    # ── both ──

    def _send(self, lane: Lane, ready: Ready) -> None:
        if ready.table.num_rows:
            self.resender.send(lane, ready)
            self.sent.append(
                Sent(schema_version=lane.schema_version, offsets=ready.offsets, checksum=ready.checksum)
            )  # fmt: skip
        self.copied(ready.table.num_rows)

    def check(self, done: int = 0) -> None:
        """Compare what the stand-in holds with what was sent since the first ``done`` inserts. Raises SinkMisshapen."""
        new = self.sent[done:]
        for version in sorted({sent.schema_version for sent in new}):
            mine = [sent for sent in new if sent.schema_version == version]
            for at in range(0, len(mine), PARTS_AT_ONCE):
                self._check(self.lane(version), mine[at : at + PARTS_AT_ONCE])

    def _check(self, lane: Lane, sent: Sequence[Sent]) -> None:
        parts = [each.offsets for each in sent]
        where = {"pipeline": self.pipeline, "first": parts[0].first, "last": parts[-1].last}
        rows = self.sink.rows(sink_sums_sql(lane, parts), where)
        held = {int(row[0]): Checksum(rows=int(row[1]), sum=int(row[2]), xor=int(row[3])) for row in rows}
        wrong = [each for part, each in enumerate(sent) if held.get(part) != each.checksum]
        if wrong:
            raise SinkMisshapen(
                f"{lane.target} {wrong[0].offsets} does not hold what was sent: {held.get(sent.index(wrong[0]))}, not "
                f"{wrong[0].checksum}",
                hint="nothing was exchanged: look into ClickHouse's log, then rebuild again",
            )

    def check_whole(self, last: int, wanted: int) -> None:
        """The stand-in has every row that was delivered, and each key's last version in its state. Raises SinkMisshapen."""
        log = quote_clickhouse(f"{self.stand_in}_log")
        held = self.sink.scalar(f"select count() from {log} final where _pipeline = {{p:String}}", {"p": self.pipeline})
        lane = self.lane(self.shape.newest.schema_version)
        behind = self.sink.keys_behind(lane, self.pipeline, OffsetRange(first=1, last=max(1, last)))
        if (held, behind) != (wanted, 0):
            raise SinkMisshapen(
                f"{self.stand_in}_log holds {held} rows, not the {wanted} that were delivered; {behind} keys are behind",
                hint="nothing was exchanged: `replicator verify`, then rebuild again",
            )

"""The log's side of a repair: changes that the log lost or has altered come back from the sink, which has what was frozen.

Guarantees: a change is put back only if it hashes to what the sink's row hashes to, else nothing is; what is removed
is archived first. The only code that touches logged changes, and only where verify found the log at fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from attrs import define

from replicator.compare import Difference, Rows, log_hashes_sql, sink_hashes_sql, unequal_places
from replicator.database import Session, now
from replicator.errors import LogCorrupt
from replicator.lanes import Lane
from replicator.model import GENERIC_LANE
from replicator.refetch import LOG_COLUMNS, fetch, put_back
from replicator.schema import TableSchema, quote
from replicator.sink import ClickHouseSink
from replicator.state import refresh_keys, single_keys
from replicator.verify_report import StateFault

OFFSETS_MAX = 10_000


@define
class LogMender:
    """Mends DuckDB's side."""

    session: Session
    sink: ClickHouseSink
    pipeline: str
    log_rows: int = 0
    state_rows: int = 0

    def fetch_back(self, lane: Lane, offsets: Sequence[int]) -> None:
        """Put the sink's rows at these offsets into the log, in place of what stands there."""
        for some in _slices(sorted(offsets)):
            held = fetch(self.sink, self.pipeline, lane.name, lane.target, lane.offset_column, some)
            held = held.filter(pc.equal(held["schema_version"], lane.schema_version))
            if held.num_rows:
                self._replace(lane, held)

    def _replace(self, lane: Lane, held: pa.Table) -> None:
        places = held["log_offset"].to_pylist()
        with self.session.transaction():
            self._archive(lane, places)
            self._delete(lane, places)
            put_back(self.session, held)
            self._check(lane, places)
        self.log_rows += len(places)

    def _check(self, lane: Lane, places: list[int]) -> None:
        """What was put back is what the sink has, as typed and hashed from its payload."""
        wrong = self._unlike(lane, places)
        if wrong:
            raise LogCorrupt(
                f"{len(wrong)} changes of {lane.name} from {wrong[0]} on cannot be had back: ClickHouse holds their "
                "columns, but not the payload they came from",
                hint="nothing was changed; `replicator restore` from another copy, or accept the loss by hand",
            )

    def _unlike(self, lane: Lane, places: Sequence[int]) -> list[int]:
        """Those of the offsets whose rows are not the same on both sides."""
        span = {"first": min(places), "last": max(places)}
        listed = ", ".join(f"{place:d}" for place in places)
        ours = self.session.arrow(f"from ({log_hashes_sql(lane)}) where place in ({listed})", span)
        sql = f"select place, h from ({sink_hashes_sql(lane)}) where place in {{offsets:Array(Int64)}}"
        theirs = self.sink.arrow(sql, {**span, "pipeline": self.pipeline, "offsets": list(places)})
        return unequal_places(Rows.of(ours), Rows.of(theirs)).tolist()

    def remove(self, lane: Lane, offsets: Sequence[int]) -> None:
        """Archive and remove changes that nothing was frozen of."""
        for some in _slices(sorted(offsets)):
            with self.session.transaction():
                self._archive(lane, some)
                self._delete(lane, some)
            self.log_rows += len(some)

    def make_single(self, lane: Lane, offsets: Sequence[int]) -> None:
        """Of changes that stand in the log more than once keep the one that the sink has, or the first."""
        for some in _slices(sorted(offsets)):
            with self.session.transaction():
                self._archive(lane, some)
                where = f"log_offset in (select unnest($offsets)) and {lane.where}"
                kept = self.session.arrow(
                    f"select {', '.join(LOG_COLUMNS)} from change_log where {where} "
                    "qualify row_number() over (partition by log_offset order by rowid) = 1",
                    {"offsets": list(some)},
                )
                self._delete(lane, some)
                put_back(self.session, kept)
            self.log_rows += len(some)
            wrong = self._unlike(lane, some)  # copies may have differed, and the first may have been the wrong one
            if wrong:
                self.fetch_back(lane, wrong)

    def renew_state(self, schema: TableSchema, faults: Sequence[StateFault]) -> None:
        """Rebuild these keys of DuckDB's T_state from the log, which need not hold those any more that stand there twice."""
        doubled, others = ([f for f in faults if (f.kind is Difference.DOUBLED) == twice] for twice in (True, False))
        if doubled:
            single_keys(self.session, schema, [fault.key_hash for fault in doubled])
        if others:
            keys = [fault.key for fault in others if fault.key is not None]
            refresh_keys(self.session, schema, keys, [fault.key_hash for fault in others])
        self.state_rows += len(faults)

    def _delete(self, lane: Lane, offsets: Sequence[int]) -> None:
        sql = f"delete from change_log where log_offset in (select unnest($offsets)) and {lane.where}"
        self.session.execute(sql, {"offsets": list(offsets)})

    def _archive(self, lane: Lane, offsets: Sequence[int]) -> None:
        columns = ", ".join(quote(name) for name in LOG_COLUMNS)
        sql = f"select {columns} from change_log where log_offset in (select unnest($offsets)) and {lane.where}"
        at = now()
        for row in self.session.rows(sql, {"offsets": list(offsets)}):
            text = json.dumps(dict(zip(LOG_COLUMNS, map(_text, row), strict=True)), ensure_ascii=False)
            name = f"change_log/{lane.name}" if lane.name != GENERIC_LANE else "change_log"
            self.session.execute("insert into removed_rows values (?, ?, ?, ?)", [at, name, row[0], text])


def _text(value: Any) -> Any:
    return value if value is None or isinstance(value, int | str) else str(value)


def _slices(values: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(values), OFFSETS_MAX):
        yield values[start : start + OFFSETS_MAX]

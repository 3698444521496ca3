"""Repair: make the sink agree with the log where verify found that it does not.

Guarantees: exactly the offsets at fault are sent again, under a new send, with the versions they were logged with;
rows that the log does not have are archived before they are removed; in T_state only exact (key, version) pairs are
deleted, and each touched key's newest logged change is sent anew. Never touches the main checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import structlog
from attrs import field, frozen

from replicator.catalog import Catalog
from replicator.compare import Difference
from replicator.controls import record_action
from replicator.database import Session, now, statement
from replicator.lanes import ROW_HASH, Lane
from replicator.ledger import Ledger
from replicator.model import GENERIC_LANE, Checksum, OffsetRange, version_of
from replicator.schema import TableSchema, quote_clickhouse
from replicator.sink import ClickHouseSink, LedgerRow, Send
from replicator.verify import TableResult, Verifier, VerifyReport, VerifyRequest

OFFSETS_MAX = 50_000
"""Offsets sent again in one insert."""

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class RepairPlan:
    """What a repair does, or would do."""

    resend: dict[str, tuple[int, ...]]
    remove: dict[str, tuple[int, ...]]
    state_versions: dict[str, tuple[int, ...]] = field(factory=dict)
    """Versions in T_state that differ from the log; deleted there, their keys' newest changes sent anew."""
    ledger: tuple[tuple[str, int, int], ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (
            any(self.resend.values()) or any(self.remove.values()) or any(self.state_versions.values()) or self.ledger
        )


@frozen(kw_only=True)
class RepairReport:
    """What was found, what was done, and what a second look says."""

    before: VerifyReport
    plan: RepairPlan
    sent_rows: int
    removed_rows: int
    after: VerifyReport | None


@frozen(kw_only=True)
class Repairer:
    """Mends with a session of its own. ``next_send`` hands out send numbers durably."""

    session: Session
    sink: ClickHouseSink
    catalog: Catalog
    ledger: Ledger
    verifier: Verifier
    pipeline: str
    instance_id: str
    timeline: int
    next_send: Callable[[], int]

    def repair(self, request: VerifyRequest, *, actor: str, dry_run: bool = False) -> RepairReport:
        """Verify, mend, verify again. A dry run only says what it would do."""
        before = self.verifier.verify(request)
        plan = plan_for(before)
        if dry_run or plan.is_empty:
            return RepairReport(before=before, plan=plan, sent_rows=0, removed_rows=0, after=None)
        removed = sum(self._remove(name, offsets) for name, offsets in plan.remove.items())
        sent = sum(self.resend(name, offsets) for name, offsets in plan.resend.items())
        for name, versions in plan.state_versions.items():
            sent += 0 if not versions else self._renew_state(name, versions)
        for name in {*plan.remove, *plan.resend}:
            sent += self._renew_touched(name, [*plan.remove.get(name, ()), *plan.resend.get(name, ())])
        self._rewrite_ledger(plan.ledger)
        after = self.verifier.verify(request)
        effect = f"sent {sent}, removed {removed}, {after.mismatches} mismatches left"
        record_action(self.session, actor, "repair", ",".join(request.tables) or "all tables", effect)
        log.info("repaired", sent=sent, removed=removed, left=after.mismatches)
        return RepairReport(before=before, plan=plan, sent_rows=sent, removed_rows=removed, after=after)

    # ── sending again ──

    def resend(self, name: str, offsets: Sequence[int]) -> int:
        """Send logged changes of a lane again, under a new send. Returns how many."""
        sent = 0
        for lane in self.verifier.lanes(name):
            for some in _slices(sorted(offsets), OFFSETS_MAX):
                sent += self._send(lane, some)
        return sent

    def _send(self, lane: Lane, offsets: Sequence[int]) -> int:
        where = {"first": offsets[0], "last": offsets[-1]}
        sql = f"from ({lane.batch_sql}) where {lane.offset_column} in (select unnest($offsets))"
        table = self.session.arrow(sql, {**where, "offsets": list(offsets)})
        if table.num_rows == 0:
            return 0
        hashes = table[ROW_HASH].to_numpy()
        checksum = Checksum(
            rows=table.num_rows,
            sum=int(np.add.reduce(hashes, dtype=np.uint64)),
            xor=int(np.bitwise_xor.reduce(hashes, dtype=np.uint64)),
        )
        send = Send(
            pipeline=self.pipeline,
            target=lane.target,
            offsets=OffsetRange(first=offsets[0], last=offsets[-1]),
            checksum=checksum,
            send=version_of(self.timeline, self.next_send()),
            attempt=1,
        )
        rows = table.num_rows
        batch = table.drop_columns([ROW_HASH]).combine_chunks()
        batch = batch.append_column("_pipeline", pa.repeat(self.pipeline, rows))
        self.sink.insert(send, batch.append_column("_send", pa.repeat(pa.scalar(send.send, pa.uint64()), rows)))
        return rows

    # ── rows the log does not have ──

    def _remove(self, name: str, offsets: Sequence[int]) -> int:
        """Archive and delete rows of T_log that the log does not hold, and their versions in T_state."""
        if not offsets:
            return 0
        lane = self.verifier.lanes(name)[-1]
        table, column = quote_clickhouse(lane.target), lane.offset_column
        where = f"_pipeline = {{pipeline:String}} and {column} in {{offsets:Array(Int64)}}"
        parameters = {"pipeline": self.pipeline, "offsets": list(offsets)}
        self._archive(name, f"select toJSONString(tuple(*)), {column} from {table} where {where}", parameters)
        versions: list[int] = []
        if name != GENERIC_LANE:
            versions = [
                v for (v,) in self.sink.rows(f"select distinct _version from {table} where {where}", parameters)
            ]
        literal_offsets = ", ".join(f"{offset:d}" for offset in offsets)
        self.sink.command(
            f"delete from {table} where _pipeline = {_text(self.pipeline)} and {column} in ({literal_offsets})"
        )
        ours = self._logged(name, versions)
        self._delete_state(name, [v for v in versions if v not in ours])
        return len(offsets)

    def _logged(self, name: str, versions: Sequence[int]) -> set[int]:
        sql = "select version from change_log where table_name = ? and version in (select unnest(?::ubigint[]))"
        return {v for (v,) in self.session.rows(sql, [name, list(versions)])} if versions else set()

    def _archive(self, name: str, sql: str, parameters: dict[str, object]) -> None:
        at = now()
        rows = [(at, name, offset, text) for text, offset in self.sink.rows(sql, parameters)]
        with self.session.transaction():
            for row in rows:
                self.session.execute("insert into removed_rows values (?, ?, ?, ?)", list(row))

    # ── state ──

    def _renew_state(self, name: str, versions: Sequence[int]) -> int:
        """Versions of T_state at fault: those are deleted, and their keys' newest changes sent anew."""
        schema = self.catalog.history(name)[-1]
        keys = self._state_keys(schema, versions)
        self._delete_state(name, versions)
        offsets = self._newest(schema, [*keys, *self._keys_of_versions(name, versions)])
        return self.resend(name, offsets)

    def _renew_touched(self, name: str, offsets: Sequence[int]) -> int:
        """The newest logged change of every key that a removed or resent row belongs to."""
        if name == GENERIC_LANE or not offsets:
            return 0
        sql = "select distinct key from change_log where table_name = ? and log_offset in (select unnest(?::bigint[]))"
        keys = [key for (key,) in self.session.rows(sql, [name, list(offsets)])]
        newest = self._newest(self.catalog.history(name)[-1], keys)
        return self.resend(name, sorted(set(newest) - set(offsets)))

    def _delete_state(self, name: str, versions: Sequence[int]) -> None:
        if name == GENERIC_LANE or not versions:
            return
        state = quote_clickhouse(self.catalog.history(name)[-1].state_name)
        for some in _slices(sorted(versions), OFFSETS_MAX):
            listed = ", ".join(f"{version:d}" for version in some)
            self.sink.command(f"delete from {state} where _version in ({listed})")

    def _state_keys(self, schema: TableSchema, versions: Sequence[int]) -> list[str]:
        """Canonical keys of T_state's rows of these versions, through the log table's own column."""
        log_table = quote_clickhouse(schema.log_name)
        sql = f"select distinct _key from {log_table} where _version in {{versions:Array(UInt64)}}"
        return [key for (key,) in self.sink.rows(sql, {"versions": list(versions)})]

    def _keys_of_versions(self, name: str, versions: Sequence[int]) -> list[str]:
        sql = "select distinct key from change_log where table_name = ? and version in (select unnest(?::ubigint[]))"
        return [key for (key,) in self.session.rows(sql, [name, list(versions)])]

    def _newest(self, schema: TableSchema, keys: Sequence[str]) -> list[int]:
        """The offset of each key's newest change that was sent."""
        if not keys:
            return []
        rows = self.session.rows(statement("verify/newest"), {"table": schema.name, "keys": sorted(set(keys))})
        return [offset for (offset,) in rows]

    # ── the ledger ──

    def _rewrite_ledger(self, missing: Sequence[tuple[str, int, int]]) -> None:
        rows = []
        for table, first, last in missing:
            found = self.session.row(statement("verify/batch"), {"table": table, "first": first, "last": last})
            if found is not None:
                rows.append(self._ledger_row(table, first, last, found))
        if rows:
            self.sink.record(rows)

    def _ledger_row(self, table: str, first: int, last: int, found: Sequence[object]) -> LedgerRow:
        row_count, checksum, send_seq, delivered_at = found
        return LedgerRow(
            pipeline=self.pipeline,
            table_name=table,
            first_offset=first,
            last_offset=last,
            row_count=int(str(row_count)),
            checksum=str(checksum),
            status="delivered",
            send_seq=int(str(send_seq)),
            timeline=self.timeline,
            instance_id=self.instance_id,
            query_id="",
            delivered_at=now(),
        )


def plan_for(report: VerifyReport) -> RepairPlan:
    """What mends a report's findings."""
    resend = {t.table: _offsets(t, Difference.MISSING, Difference.DIFFERENT) for t in report.tables}
    remove = {t.table: _offsets(t, Difference.EXTRA) for t in report.tables}
    state = {t.table: tuple(p.version for p in t.problems if p.version is not None) for t in report.tables}
    ledger = tuple(p.batch for p in report.problems if p.batch is not None)
    return RepairPlan(resend=resend, remove=remove, state_versions=state, ledger=ledger)


def _offsets(result: TableResult, *kinds: Difference) -> tuple[int, ...]:
    return tuple(m.offset for m in result.mismatches if m.kind in kinds)


def _slices(values: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"

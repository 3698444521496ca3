"""The report of a running service: its loops, its lanes, its file, and what the probe last heard from both engines.

Guarantees: never waits for Redis or ClickHouse; figures of one report were read within milliseconds of each other.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
from attrs import define, evolve, field, frozen

from replicator.controls import CAPTURE
from replicator.database import Session
from replicator.deliver_lane import Circuit, LaneState
from replicator.free_space import disk_free_bytes
from replicator.status import (
    LogStatus,
    LoopStatus,
    Reason,
    ReasonKind,
    SinkStatus,
    State,
    StatusReport,
    StreamStatus,
    TableStatus,
    Totals,
    with_lag,
)
from replicator.status_file import (
    LaneStanding,
    Records,
    RecordsReader,
    oldest_age_seconds,
    pipeline_checkpoint,
    read_lanes,
    stream_status,
    verify_status,
)
from replicator.status_probe import Probe, RedisFacts, backlog_entries, engine_status
from replicator.status_runway import RUNWAY_WINDOW_SECONDS, SAMPLE_SECONDS, Sample, foresee, recent_rates
from replicator.status_stall import Stall

if TYPE_CHECKING:
    from replicator.deliver import Deliver
    from replicator.service import Service

REPORT_SECONDS_MAX = 60.0
"""A report that old says nothing of now: it is made every few seconds."""
DUE_SECONDS_SLACK = 1.0

log = structlog.get_logger(__name__)


@define
class Watch:
    """Samples the counters for rates and runway, and keeps the latest report for those who may not wait."""

    service: Service
    probe: Probe
    stop: threading.Event
    latest: StatusReport | None = None
    latest_at: float = 0.0
    """When it was made, on the monotonic clock."""
    _cost_seconds: float = 0.0
    _stall: Stall = field(factory=Stall)
    _reader: RecordsReader = field(factory=RecordsReader)
    _samples: deque[Sample] = field(factory=lambda: deque(maxlen=int(RUNWAY_WINDOW_SECONDS / SAMPLE_SECONDS)))
    _lock: threading.Lock = field(factory=threading.Lock)

    def run(self) -> None:
        """Until stopped. A report that is dear to make is made less often."""
        while not self.stop.wait(max(SAMPLE_SECONDS, 20 * self._cost_seconds)):
            started = time.monotonic()
            self.report()
            self._cost_seconds = time.monotonic() - started

    def report(self) -> StatusReport:
        """How everything stands now."""
        with self._lock:
            self.latest = _collect(self.service, self.probe, self._sampled(), self._stall, self._reader)
            self.latest_at = time.monotonic()
            return self.latest

    @property
    def recent(self) -> StatusReport | None:
        """The latest report for those who judge by it: one that nobody renewed says so, whatever it said before."""
        report, age = self.latest, time.monotonic() - self.latest_at
        if report is None or age <= max(REPORT_SECONDS_MAX, 40 * self._cost_seconds):
            return report
        text = f"the status was last made {age:.0f} s ago: whatever makes it hangs"
        note = Reason(kind=ReasonKind.REPORT_OLD, state=State.FAILED, text=text)
        return evolve(report, notes=[*report.notes, note])

    def _sampled(self) -> tuple[Sample, ...]:
        s, redis = self.service, self.probe.redis
        sample = Sample(
            at=time.monotonic(),
            entries_read=s.progress.entries_read,
            changes_logged=s.progress.changes_appended,
            rows_delivered=s.deliver.delivered_rows,
            log_bytes=s.database.size_bytes(),
            redis_bytes=redis.memory_used_bytes if redis else None,
        )
        if not self._samples or sample.at - self._samples[-1].at >= SAMPLE_SECONDS / 2:
            self._samples.append(sample)
        return (*self._samples, sample)


def _collect(
    service: Service, probe: Probe, samples: tuple[Sample, ...], stall: Stall, reader: RecordsReader
) -> StatusReport:
    session = service.database.session()
    try:
        delivery = read_delivery(service, session)
        # After the checkpoint: what is parked in between is counted twice then, never not at all.
        records, delivered = reader.read(session, service.ledger.failed_table)
        verified = verify_status(session)
    finally:
        session.close()
    head = service.changelog.head
    checkpoint = delivery.checkpoint
    tables = _tables(service, delivery.lanes, records)
    confirmed = probe.clickhouse.confirmed if probe.clickhouse and not probe.clickhouse.error else None
    clock = time.monotonic()
    redis_facts = probe.redis
    path = service.settings.writer.database.path
    report = StatusReport(
        pipeline=service.settings.pipeline.name,
        running=True,
        instance_id=service.instance_id,
        version=version("replicator"),
        pid=os.getpid(),
        uptime_seconds=time.time() - service.started_at,
        database=str(path),
        streams=_streams(service, redis_facts),
        log=_log(service, head, records, samples[-1].log_bytes),
        sink=SinkStatus(
            checkpoint_offset=checkpoint,
            confirmed_offset=_confirmed(confirmed, delivered, checkpoint),
            circuit=delivery.circuit,
        ),
        tables=[evolve(t, confirmed_offset=None if confirmed is None else confirmed.get(t.table, 0)) for t in tables],
        failed_syncs=records.failed,
        rejected_entries=records.rejected,
        gaps=records.gaps,
        verify=verified,
        retention=service.keeping.retention_status(),
        trim=service.keeping.trim_status(),
        snapshots=service.keeping.snapshot_status(),
        rates=recent_rates(samples),
        totals=_totals(service),
        redis=engine_status(redis_facts, clock=clock),
        clickhouse=engine_status(probe.clickhouse, clock=clock),
        loops=_loops(service, clock),
        paused=service.controls.paused,
        disk_free_bytes=disk_free_bytes(path),
        disk_floor_bytes=service.space.floor_bytes,
        disk_low=service.space.is_low(),
        sync_interval_seconds=service.settings.writer.sync.sync_interval_sec,
    )
    age = oldest_age_seconds(records.parked_since, *(facts.standing.oldest_at for facts in delivery.lanes))
    report = _with_stalls(report, stall, [facts.standing for facts in delivery.lanes], clock)
    report = with_lag(report, head=head, checkpoint=checkpoint, parked=records.failed.rows, age=age)
    maximum = redis_facts.memory_max_bytes if redis_facts and not redis_facts.error else None
    return evolve(report, runway=foresee(report, samples, maximum))


def _with_stalls(report: StatusReport, stall: Stall, lanes: Sequence[LaneStanding], clock: float) -> StatusReport:
    interval = report.sync_interval_seconds + DUE_SECONDS_SLACK
    due = {lane.lane: (oldest_age_seconds(lane.oldest_at) or 0) > interval for lane in lanes}
    waits = CAPTURE in report.paused or report.disk_low
    return evolve(
        report,
        streams=stall.streams(report.streams, paused=waits, clock=clock),
        tables=stall.tables(report.tables, due, clock=clock),
    )


def _log(service: Service, head: int, records: Records, size: int) -> LogStatus:
    return LogStatus(oldest_offset=service.changelog.oldest, head_offset=head, changes=records.changes, bytes=size)


def _streams(service: Service, facts: RedisFacts | None) -> list[StreamStatus]:
    positions, described = service.progress.positions, facts.streams if facts and not facts.error else {}
    return [
        stream_status(name, positions.get(name), backlog_entries(positions.get(name), described.get(name)))
        for name in sorted({*service.catalog.routes.streams, *positions})
    ]


# ── lanes ──


@frozen(kw_only=True)
class _LaneFacts:
    """A lane as it stood between two turns of deliver; ``state`` is None while deliver has not begun."""

    standing: LaneStanding
    at: int
    state: LaneState | None = None


@frozen(kw_only=True)
class _Delivery:
    checkpoint: int
    circuit: str | None
    lanes: list[_LaneFacts]


def read_delivery(service: Service, session: Session) -> _Delivery:
    """Checkpoint, circuit and lanes from deliver's memory; from the file while deliver has not begun.

    The head is read before the lanes: what is logged in between is ahead of the checkpoint then, never behind it.
    """
    deliver = service.deliver
    with deliver.turn:
        if deliver.loaded:
            return _from_memory(deliver, session)
    head = service.changelog.head
    lanes = read_lanes(session)
    facts = [_LaneFacts(standing=lane, at=lane.checkpoint if lane.pending else head) for lane in lanes]
    return _Delivery(checkpoint=pipeline_checkpoint(lanes, head), circuit=None, lanes=facts)


def _from_memory(deliver: Deliver, session: Session) -> _Delivery:
    states = list(deliver.lanes.values())
    is_open = any(state.circuit is Circuit.OPEN for state in states)
    lanes = [_LaneFacts(standing=_standing(session, s), at=deliver.standing(s), state=s) for s in states]
    return _Delivery(
        checkpoint=deliver.checkpoint, circuit=str(Circuit.OPEN if is_open else Circuit.CLOSED), lanes=lanes
    )


def _tables(service: Service, lanes: list[_LaneFacts], records: Records) -> list[TableStatus]:
    clock = time.monotonic()
    tables = []
    for facts in sorted(lanes, key=lambda facts: facts.standing.lane):
        lane = facts.standing
        table = TableStatus(
            table=lane.lane,
            checkpoint_offset=facts.at,
            pending=lane.pending,
            parked=records.parked.get(lane.lane, 0),
            paused=service.controls.lane_paused(lane.lane),
            schema_version=schema.schema_version if (schema := service.catalog.current.get(lane.lane)) else None,
        )
        tables.append(_with_state(table, facts.state, clock))
    return tables


def _standing(session: Session, state: LaneState) -> LaneStanding:
    """What a lane has pending. The caller holds deliver's turn."""
    pending = state.pending_rows + sum(b.row_count for b in state.frozen) + (state.cutting.rows if state.cutting else 0)
    prepared, oldest = state.prepared, state.oldest_at
    if prepared is not None and prepared.offsets not in [batch.offsets for batch in state.frozen]:
        pending += prepared.table.num_rows
    if state.frozen or prepared or state.preparing or state.sending:
        sql = f"select epoch(min(logged_at)) from change_log where log_offset between ? and ? and {state.lane.where}"
        row = session.row(sql, [state.checkpoint + 1, state.batched])
        oldest = row[0] if row and row[0] is not None else oldest
    return LaneStanding(lane=state.lane.name, checkpoint=state.checkpoint, pending=pending, oldest_at=oldest)


def _with_state(table: TableStatus, state: LaneState | None, clock: float) -> TableStatus:
    if state is None:
        return table
    waiting = state.try_at - clock
    return evolve(
        table,
        circuit=str(state.circuit),
        attempt=state.retries,
        next_try_seconds=waiting if waiting > 0 else None,
        last_error=state.last_error or None,
        stopped=state.stopped_reason or None,
    )


def _confirmed(confirmed: Mapping[str, int] | None, delivered: Mapping[str, int], checkpoint: int) -> int | None:
    """How far ClickHouse's own ledger agrees: the checkpoint, or where a table's ledger ends before its last batch."""
    if confirmed is None:
        return None
    short = [confirmed.get(table, 0) for table, last in delivered.items() if confirmed.get(table, 0) < last]
    return min([checkpoint, *short])


# ── counters, loops ──


def _totals(service: Service) -> Totals:
    progress, deliver = service.progress, service.deliver
    return Totals(
        entries_read=progress.entries_read,
        changes_logged=progress.changes_appended,
        rejected=progress.entries_rejected,
        repeated=progress.changes_repeated,
        id_conflicts=progress.id_conflicts,
        commits=progress.commits,
        rows_delivered=deliver.delivered_rows,
        batches_delivered=deliver.delivered_batches,
    )


def _loops(service: Service, clock: float) -> list[LoopStatus]:
    beats = {CAPTURE: service.progress.heartbeat_at, "deliver": service.deliver.heartbeat_at}
    loops = []
    for health in service.loops.values():
        beat = beats.get(health.name)
        silent = None if beat is None else max(0.0, clock - max(beat, health.started_at))
        loops.append(
            LoopStatus(
                loop=health.name,
                running=health.running,
                waits_for_engine=health.unavailable,
                restarts=health.restarts,
                heartbeat_seconds_ago=silent,
                error=health.error or None,
            )
        )
    return loops

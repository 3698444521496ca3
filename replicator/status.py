"""How the pipeline stands: the values of ``status --json``, and the verdict with its reasons in words. Pure.

Guarantees: what is not known is None, never 0; lag is never 0 while anything is parked; every field documented in
the design is there, others may be added. Never asks anybody: see `status_live` and `status_file`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from attrs import asdict, evolve, field, frozen

HEARTBEAT_SECONDS_MAX = 30.0
"""A loop that gave no sign of life for so long hangs."""
LAG_SECONDS_SLACK = 60.0
"""Delivery is behind when its oldest change waits this long beyond the interval it is given."""
RUNWAY_SECONDS_MIN = 3600.0


class State(StrEnum):
    """``degraded`` mends itself or waits for a decision; ``failed`` needs somebody now."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"

    @property
    def exit_code(self) -> int:
        """What ``status --check`` ends with, as monitoring plugins do."""
        return {State.OK: 0, State.DEGRADED: 1, State.FAILED: 2}[self]


@frozen(kw_only=True)
class EngineStatus:
    """Redis or ClickHouse as last asked. ``reachable`` is None until the first answer or refusal."""

    reachable: bool | None = None
    refused: bool = False
    version: str | None = None
    error: str | None = None
    asked_seconds_ago: float | None = None


@frozen(kw_only=True)
class StreamStatus:
    stream: str
    stream_epoch: int | None = None
    last_entry_id: str | None = None
    backlog_entries: int | None = None


@frozen(kw_only=True)
class LogStatus:
    head_offset: int | None = None
    changes: int | None = None
    bytes: int | None = None


@frozen(kw_only=True)
class SinkStatus:
    checkpoint_offset: int | None = None
    confirmed_offset: int | None = None
    """What ClickHouse itself says it has."""
    lag_changes: int | None = None
    """Head minus checkpoint, and every parked row."""
    lag_seconds: float | None = None
    circuit: str | None = None


@frozen(kw_only=True)
class TableStatus:
    table: str
    checkpoint_offset: int | None = None
    confirmed_offset: int | None = None
    pending: int | None = None
    parked: int = 0
    paused: bool = False
    circuit: str | None = None
    attempt: int = 0
    """Attempts that the batch in hand has failed."""
    next_try_seconds: float | None = None
    last_error: str | None = None
    stopped: str | None = None


@frozen(kw_only=True)
class FailedStatus:
    open: int | None = None
    rows: int | None = None
    oldest_age_seconds: float | None = None


@frozen(kw_only=True)
class RejectedStatus:
    open: int | None = None


@frozen(kw_only=True)
class GapStatus:
    open: int | None = None
    entries_lost: int | None = None


@frozen(kw_only=True)
class TrimStatus:
    """Of Redis' streams. ``held_by``: by stream the consumer group that keeps it from being trimmed further."""

    mode: str | None = None
    entries: int | None = None
    held_by: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class VerifyStatus:
    last_at: str | None = None
    mismatches: int | None = None
    success_age_seconds: float | None = None


@frozen(kw_only=True)
class Runway:
    """Seconds until something runs out at today's rate; None where nothing does, or too little is known."""

    disk_seconds: float | None = None
    redis_seconds: float | None = None
    catch_up_seconds: float | None = None


@frozen(kw_only=True)
class Rates:
    """Per second, over the last minute or so."""

    entries_read: float | None = None
    changes_logged: float | None = None
    rows_delivered: float | None = None


@frozen(kw_only=True)
class Totals:
    """Counted since the process started; None where none runs."""

    entries_read: int | None = None
    changes_logged: int | None = None
    rejected: int | None = None
    commits: int | None = None
    rows_delivered: int | None = None
    batches_delivered: int | None = None


@frozen(kw_only=True)
class LoopStatus:
    loop: str
    running: bool
    waits_for_engine: bool = False
    restarts: int = 0
    heartbeat_seconds_ago: float | None = None
    error: str | None = None

    @property
    def hangs(self) -> bool:
        """Running, and without a sign of life."""
        silent = self.heartbeat_seconds_ago
        return self.running and silent is not None and silent > HEARTBEAT_SECONDS_MAX


@frozen(kw_only=True)
class Reason:
    """Why the state is what it is."""

    state: State
    text: str


@frozen(kw_only=True)
class StatusReport:
    """Everything `replicator status` shows."""

    pipeline: str
    running: bool
    instance_id: str | None = None
    version: str | None = None
    pid: int | None = None
    uptime_seconds: float | None = None
    database: str
    streams: Sequence[StreamStatus] = ()
    log: LogStatus = field(factory=LogStatus)
    sink: SinkStatus = field(factory=SinkStatus)
    tables: Sequence[TableStatus] = ()
    failed_syncs: FailedStatus = field(factory=FailedStatus)
    rejected_entries: RejectedStatus = field(factory=RejectedStatus)
    gaps: GapStatus = field(factory=GapStatus)
    verify: VerifyStatus = field(factory=VerifyStatus)
    trim: TrimStatus = field(factory=TrimStatus)
    runway: Runway = field(factory=Runway)
    rates: Rates = field(factory=Rates)
    totals: Totals = field(factory=Totals)
    redis: EngineStatus = field(factory=EngineStatus)
    clickhouse: EngineStatus = field(factory=EngineStatus)
    loops: Sequence[LoopStatus] = ()
    paused: Sequence[str] = ()
    disk_free_bytes: int | None = None
    disk_floor_bytes: int | None = None
    disk_low: bool = False
    """Whether capture waits because so little is free."""
    sync_interval_seconds: float = 1.0
    notes: Sequence[Reason] = ()
    """Reasons found by whoever made the report, beside those that follow from its numbers."""

    @property
    def reasons(self) -> list[Reason]:
        """Everything that is wrong, worst first."""
        found = [*self.notes, *_reasons(self)]
        return sorted(found, key=lambda reason: reason.state is not State.FAILED)

    @property
    def state(self) -> State:
        reasons = self.reasons
        return reasons[0].state if reasons else State.OK

    def as_json(self) -> dict[str, Any]:
        """The documented form; fields are only ever added."""
        whole = asdict(self, filter=lambda a, _: a.name not in ("notes", "sync_interval_seconds"))
        return {
            "state": str(self.state),
            "reasons": [reason.text for reason in self.reasons],
            **{name: _rounded(value) for name, value in whole.items()},
        }


def with_lag(
    report: StatusReport, *, head: int | None, checkpoint: int | None, parked: int | None, age: float | None
) -> StatusReport:
    """The report with its lag: unknown when any part of it is, never 0 while rows are parked."""
    known = head is not None and checkpoint is not None and parked is not None
    changes = max(0, head - checkpoint) + parked if known else None  # type: ignore[operator]
    seconds = 0.0 if changes == 0 else age
    return evolve(report, sink=evolve(report.sink, lag_changes=changes, lag_seconds=seconds))


def _reasons(report: StatusReport) -> Iterable[Reason]:
    yield from _engine_reasons(report)
    for loop in report.loops:
        yield from _loop_reasons(loop)
    for table in report.tables:
        yield from _table_reasons(table)
    yield from _record_reasons(report)
    yield from _lag_reasons(report)
    for subject in report.paused:
        yield Reason(state=State.DEGRADED, text=f"{subject} is paused: `replicator resume {subject}`")


def _engine_reasons(report: StatusReport) -> Iterable[Reason]:
    for name, engine in (("Redis", report.redis), ("ClickHouse", report.clickhouse)):
        if engine.reachable is False:
            state = State.FAILED if engine.refused else State.DEGRADED
            yield Reason(state=state, text=engine.error or f"{name} does not answer")


def _loop_reasons(loop: LoopStatus) -> Iterable[Reason]:
    if not loop.running:
        why = f": {loop.error}" if loop.error else ""
        state = State.DEGRADED if loop.waits_for_engine else State.FAILED
        yield Reason(state=state, text=f"{loop.loop} is down and is started again by itself{why}")
    elif loop.hangs:
        text = f"{loop.loop} has given no sign of life for {loop.heartbeat_seconds_ago:.0f} s"
        yield Reason(state=State.FAILED, text=text)


def _table_reasons(table: TableStatus) -> Iterable[Reason]:
    if table.stopped:
        yield Reason(state=State.FAILED, text=f"delivery of {table.table} is stopped: {table.stopped}")
    elif table.circuit == "open":
        waiting = "" if table.next_try_seconds is None else f", next probe in {table.next_try_seconds:.0f} s"
        why = f": {table.last_error}" if table.last_error else ""
        yield Reason(state=State.DEGRADED, text=f"delivery of {table.table} waits for ClickHouse{waiting}{why}")
    elif table.last_error:
        waiting = "" if table.next_try_seconds is None else f" in {table.next_try_seconds:.0f} s"
        text = f"delivery of {table.table} failed {table.attempt} times and tries again{waiting}: {table.last_error}"
        yield Reason(state=State.DEGRADED, text=text)


def _record_reasons(report: StatusReport) -> Iterable[Reason]:
    failed, rejected, gaps = report.failed_syncs, report.rejected_entries, report.gaps
    if failed.open:
        text = f"{failed.open} failed syncs with {failed.rows} rows are parked: `replicator failed list`"
        yield Reason(state=State.DEGRADED, text=text)
    if rejected.open:
        text = f"{rejected.open} entries could not be logged: `replicator rejected list`"
        yield Reason(state=State.DEGRADED, text=text)
    if gaps.open:
        lost = "an unknown number of" if gaps.entries_lost is None else str(gaps.entries_lost)
        text = f"{lost} entries left Redis before they were read ({gaps.open} gaps): `replicator gaps list`"
        yield Reason(state=State.FAILED, text=text)
    if report.verify.mismatches:
        yield Reason(state=State.FAILED, text=f"verify found {report.verify.mismatches} rows that differ in ClickHouse")


def _lag_reasons(report: StatusReport) -> Iterable[Reason]:
    lag, runway = report.sink.lag_seconds, report.runway
    if report.running and lag is not None and lag > report.sync_interval_seconds + LAG_SECONDS_SLACK:
        yield Reason(state=State.DEGRADED, text=f"the oldest undelivered change has waited {lag:.0f} s")
    if report.disk_low:
        free, floor = (f"{(n or 0) / 1e6:,.0f} MB" for n in (report.disk_free_bytes, report.disk_floor_bytes))
        text = (
            f"capture waits: the disk of {report.database} has {free} free, and [retention] min_free_bytes is {floor}; "
            "free some space, and it goes on by itself"
        )
        yield Reason(state=State.FAILED, text=text)
    for what, seconds in (("the disk of the database", runway.disk_seconds), ("Redis' memory", runway.redis_seconds)):
        if seconds is not None and seconds < RUNWAY_SECONDS_MIN:
            state = State.FAILED if seconds < RUNWAY_SECONDS_MIN / 6 else State.DEGRADED
            yield Reason(state=state, text=f"{what} is full in {seconds / 60:.0f} min at today's rate")


def _rounded(value: Any) -> Any:
    """Seconds and rates to the millisecond: what is shown is not more exact than that."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value

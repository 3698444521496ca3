"""How the pipeline stands: the values of ``status --json``, and the verdict with its reasons in words. Pure.

Guarantees: what is not known is None, never 0; lag is never 0 while anything is parked; every field documented in
the design is there, others may be added. Never asks anybody: see `status_live` and `status_file`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from attrs import asdict, evolve, field, frozen

from replicator.status_reasons import HEARTBEAT_SECONDS_MAX, Reason, ReasonKind, State, find_reasons


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
    stalled_seconds: float | None = None
    """How long entries have been waiting and none was logged; 0 while they move."""


@frozen(kw_only=True)
class LogStatus:
    oldest_offset: int | None = None
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
    stalled_seconds: float | None = None
    """How long rows have been due and none was delivered, with no error that would say why; 0 while they move."""
    parked: int = 0
    paused: bool = False
    circuit: str | None = None
    attempt: int = 0
    """Attempts that the batch in hand has failed."""
    schema_version: int | None = None
    """How often the table has been declared otherwise, counting from 1; None where it is not declared."""
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
class RetentionStatus:
    """Of the log. ``waits_for`` says why it holds more than the limits ask for."""

    max_age_days: float | None = None
    max_bytes: int | None = None
    changes_deleted: int | None = None
    bytes_used: int | None = None
    waits_for: str | None = None


@frozen(kw_only=True)
class SnapshotStatus:
    """``error`` says why the last one on schedule was not taken."""

    newest: str | None = None
    age_seconds: float | None = None
    kept: int | None = None
    error: str | None = None


@frozen(kw_only=True)
class VerifyStatus:
    last_at: str | None = None
    age_seconds: float | None = None
    mismatches: int | None = None
    success_age_seconds: float | None = None


class Outlook(StrEnum):
    """What is known of a moment to come. Only what is foreseen has seconds."""

    UNKNOWN = "unknown"
    FORESEEN = "foreseen"
    NEVER = "never"
    """Not at today's rate: nothing grows, or delivery is no faster than capture."""
    UNLIMITED = "unlimited"


@frozen(kw_only=True)
class Runway:
    """Seconds at today's rate until the disk and Redis' memory are full and until delivery has caught up."""

    disk: Outlook = Outlook.UNKNOWN
    disk_seconds: float | None = None
    redis: Outlook = Outlook.UNKNOWN
    redis_seconds: float | None = None
    catch_up: Outlook = Outlook.UNKNOWN
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
    repeated: int | None = None
    """Changes dropped because their idempotency key was logged with the same content."""
    id_conflicts: int | None = None
    """Changes logged beside another content of the same idempotency key."""
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
    retention: RetentionStatus = field(factory=RetentionStatus)
    trim: TrimStatus = field(factory=TrimStatus)
    snapshots: SnapshotStatus = field(factory=SnapshotStatus)
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
        found = [*self.notes, *find_reasons(self)]
        return sorted(found, key=lambda reason: reason.state is not State.FAILED)

    @property
    def state(self) -> State:
        reasons = self.reasons
        return reasons[0].state if reasons else State.OK

    @property
    def hangs(self) -> bool:
        """Whether part of the process gives no sign of life: only a restart mends that."""
        return any(reason.kind in (ReasonKind.LOOP_SILENT, ReasonKind.REPORT_OLD) for reason in self.reasons)

    def as_json(self) -> dict[str, Any]:
        """The documented form; fields are only ever added."""
        whole = asdict(self, filter=lambda a, _: a.name not in ("notes", "sync_interval_seconds"))
        return {
            "state": str(self.state),
            "reasons": [reason.text for reason in self.reasons],
            "reason_kinds": [str(reason.kind) for reason in self.reasons],
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


def _rounded(value: Any) -> Any:
    """Seconds and rates to the millisecond: what is shown is not more exact than that."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value

"""What the DuckDB file alone tells of the pipeline: the whole report when no service runs, and part of it when one does.

Guarantees: reads only. Never asks Redis or ClickHouse, so what only they know is None.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import define, field, frozen

from replicator.changelog import StreamPosition
from replicator.config import Settings
from replicator.controls import Controls
from replicator.database import Database, Session, quote, statement
from replicator.free_space import disk_free_bytes
from replicator.status import (
    FailedStatus,
    GapStatus,
    LogStatus,
    Reason,
    ReasonKind,
    RejectedStatus,
    SinkStatus,
    State,
    StatusReport,
    StreamStatus,
    TableStatus,
    VerifyStatus,
    with_lag,
)

REST_SECONDS = 10.0
HELD_SECONDS_MAX = 60.0


@frozen(kw_only=True)
class Records:
    """Counts of what waits for somebody, and when the oldest parked change was logged (epoch seconds)."""

    failed: FailedStatus
    parked_since: float | None
    rejected: RejectedStatus
    gaps: GapStatus
    changes: int
    parked: Mapping[str, int]


@frozen(kw_only=True)
class LaneStanding:
    """One lane as the file has it."""

    lane: str
    checkpoint: int
    pending: int
    oldest_at: float | None


def read_records(session: Session, failed_table: str) -> Records:
    """Everything counted in one query; ``failed_table`` is quoted."""
    row = session.row(statement("status/records").replace("failed_syncs", failed_table))
    assert row is not None
    open_failed, rows, failed_since, copied_since, rejected, gaps, lost, changes = row
    parked = dict(session.rows(statement("status/parked").replace("failed_syncs", failed_table)))
    age = None if failed_since is None else max(0.0, time.time() - failed_since)
    return Records(
        failed=FailedStatus(open=open_failed, rows=rows, oldest_age_seconds=age),
        parked_since=None if not open_failed else _parked_since(session, failed_table, failed_since, copied_since),
        rejected=RejectedStatus(open=rejected),
        gaps=GapStatus(open=gaps, entries_lost=lost),
        changes=changes,
        parked=parked,
    )


def _parked_since(session: Session, failed_table: str, *known: float | None) -> float | None:
    """When the oldest parked change was logged; where it is not in the log any more, what is ``known`` of it."""
    ranges = session.rows(statement("status/parked_ranges").replace("failed_syncs", failed_table))
    logged = statement("status/logged_at")
    found = [session.row(logged, {"lane": lane, "first": first, "last": last}) for lane, first, last in ranges]
    return min((at for at in [*known, *(row[0] for row in found if row)] if at is not None), default=None)


@define
class RecordsReader:
    """Reads the records, and where each lane's last recorded batch ends, again only after something was committed.

    Every commit writes to the file or its WAL. It may be seen there before it can be read, so that what was read is held
    only once the file has rested for a while; and for no longer than a minute, whatever the file says.
    """

    reads: int = field(default=0, init=False)
    _held: tuple[Records, Mapping[str, int]] | None = field(default=None, init=False)
    _stamp: tuple[tuple[int, int], ...] = field(default=(), init=False)
    _stamped_at: float = field(default=0.0, init=False)
    _read_at: float = field(default=0.0, init=False)

    def read(self, session: Session, failed_table: str) -> tuple[Records, Mapping[str, int]]:
        """Records and ends, as of now."""
        stamp, clock = session.database.stamp(), time.monotonic()
        if stamp != self._stamp:
            self._stamp, self._stamped_at, self._held = stamp, clock, None
        if self._held is not None and clock - self._read_at < HELD_SECONDS_MAX:
            return self._held
        self.reads += 1
        found = read_records(session, failed_table), dict(session.rows(statement("status/delivered")))
        rested = clock - self._stamped_at >= REST_SECONDS and found[0].parked_since is None  # an age grows by itself
        self._held, self._read_at = (found if rested else None), clock
        return found


def read_lanes(session: Session) -> list[LaneStanding]:
    """Where every lane stands, by scanning what is behind it."""
    return [
        LaneStanding(lane=lane, checkpoint=checkpoint, pending=pending, oldest_at=oldest)
        for lane, checkpoint, pending, oldest in session.rows(statement("status/pending"))
    ]


def pipeline_checkpoint(lanes: Sequence[LaneStanding], head: int) -> int:
    """The smallest of the lanes' checkpoints; one with nothing pending counts as standing at the head."""
    return min((lane.checkpoint for lane in lanes if lane.pending), default=head)


def oldest_age_seconds(*instants: float | None) -> float | None:
    """The age of the oldest of some epoch instants, None when there is none."""
    known = [at for at in instants if at is not None]
    return max(0.0, time.time() - min(known)) if known else None


def file_report(settings: Settings, database: Database) -> StatusReport:
    """The report when no service runs: what the file says, and that nothing moves."""
    session = database.session()
    failed_table = quote(settings.writer.error_handling.failed_sync_table)
    records, lanes = read_records(session, failed_table), read_lanes(session)
    head_row = session.row(statement("changelog/ends"))
    head, oldest = (head_row[1], head_row[4]) if head_row else (0, 1)
    positions = {row[0]: row for row in session.rows(statement("changelog/positions"))}
    instance = session.row("select value from meta where key = 'instance_id'")
    verified = verify_status(session)
    session.close()
    checkpoint = pipeline_checkpoint(lanes, head)
    parked = records.failed.rows or 0
    report = StatusReport(
        pipeline=settings.pipeline.name,
        running=False,
        instance_id=instance[0] if instance else None,
        database=str(settings.writer.database.path),
        streams=[_stream(name, positions.get(name)) for name in sorted({*positions, *settings.redis.streams})],
        log=LogStatus(oldest_offset=oldest, head_offset=head, changes=records.changes, bytes=database.size_bytes()),
        sink=SinkStatus(checkpoint_offset=checkpoint),
        tables=[
            TableStatus(
                table=lane.lane,
                checkpoint_offset=lane.checkpoint if lane.pending else head,
                pending=lane.pending,
                parked=records.parked.get(lane.lane, 0),
            )
            for lane in sorted(lanes, key=lambda lane: lane.lane)
        ],
        failed_syncs=records.failed,
        rejected_entries=records.rejected,
        gaps=records.gaps,
        verify=verified,
        paused=Controls.open(database).paused,
        disk_free_bytes=disk_free_bytes(settings.writer.database.path),
        notes=[NOT_RUNNING],
    )
    age = oldest_age_seconds(records.parked_since, *(lane.oldest_at for lane in lanes))
    return with_lag(report, head=head, checkpoint=checkpoint, parked=parked, age=age)


NOT_RUNNING = Reason(
    kind=ReasonKind.NOT_RUNNING,
    state=State.FAILED,
    text="the service is not running: start it with `replicator run`",
)


def empty_report(settings: Settings) -> StatusReport:
    """The report when there is no file yet: nothing is known but that."""
    path = settings.writer.database.path
    note = Reason(
        kind=ReasonKind.NO_DATABASE,
        state=State.FAILED,
        text=f"there is no database at {path} yet: the first `replicator run` makes it",
    )
    return StatusReport(
        pipeline=settings.pipeline.name,
        running=False,
        database=str(path),
        streams=[StreamStatus(stream=name) for name in settings.redis.streams],
        disk_free_bytes=disk_free_bytes(path),
        notes=[NOT_RUNNING, note],
    )


def _stream(name: str, row: Sequence[object] | None) -> StreamStatus:
    if row is None:
        return StreamStatus(stream=name)
    return StreamStatus(stream=name, stream_epoch=int(str(row[1])), last_entry_id=str(row[2]))


def stream_status(stream: str, position: StreamPosition | None, backlog: int | None) -> StreamStatus:
    """A stream as capture stands on it."""
    if position is None:
        return StreamStatus(stream=stream, backlog_entries=backlog)
    return StreamStatus(
        stream=stream,
        stream_epoch=position.stream_epoch,
        last_entry_id=position.last_entry_id,
        backlog_entries=backlog,
    )


VERIFY_LAST = "verify_last"
"""Where the last comparison of everything is remembered, in meta."""


def read_last_verify(session: Session) -> dict[str, Any]:
    """What is remembered of it: at and success_at (epoch seconds), rows, mismatches, and these by table; empty when
    there was none."""
    row = session.row("select value from meta where key = ?", [VERIFY_LAST])
    found: dict[str, Any] = json.loads(row[0]) if row else {}
    return found


def verify_status(session: Session) -> VerifyStatus:
    """The last comparison of everything, on request or on schedule, as `status` shows it."""
    last = read_last_verify(session)
    if not last:
        return VerifyStatus()
    at = datetime.fromtimestamp(last["at"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    success, age = last["success_at"], max(0.0, time.time() - last["at"])
    since = None if success is None else max(0.0, time.time() - success)
    return VerifyStatus(last_at=at, age_seconds=age, mismatches=last["mismatches"], success_age_seconds=since)

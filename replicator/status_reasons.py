"""The verdict: what in a status report is wrong, how bad it is, and in which words. Pure.

Guarantees: each reason has a kind from a closed set, for metrics, open endpoints and the runbook; what mends itself
or waits for a decision is ``degraded``, what needs somebody now is ``failed``. What is unknown is never a reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

from attrs import frozen

from replicator.words import counted

if TYPE_CHECKING:
    from replicator.status import LoopStatus, StatusReport, TableStatus

HEARTBEAT_SECONDS_MAX = 30.0
"""A loop that gave no sign of life for so long hangs."""
LAG_SECONDS_SLACK = 60.0
"""Delivery is behind when its oldest change waits this long beyond the interval it is given."""
RUNWAY_SECONDS_MIN = 3600.0
RETENTION_SLACK = 1.25
"""How far above its limit the log may be before that is said."""
STALLED_SECONDS_DEGRADED = 30.0
STALLED_SECONDS_FAILED = 300.0
"""A stream or table of which nothing moved for so long, though it could have, is stuck: a heartbeat does not show it."""


class State(StrEnum):
    """``degraded`` mends itself or waits for a decision; ``failed`` needs somebody now."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"

    @property
    def exit_code(self) -> int:
        """What ``status --check`` ends with, as monitoring plugins do."""
        return {State.OK: 0, State.DEGRADED: 1, State.FAILED: 2}[self]


class ReasonKind(StrEnum):
    """Every kind of reason there is. The runbook has a heading for each; open endpoints and metrics name nothing else."""

    NOT_RUNNING = "not_running"
    NO_DATABASE = "no_database"
    REDIS_UNREACHABLE = "redis_unreachable"
    REDIS_REFUSES = "redis_refuses"
    CLICKHOUSE_UNREACHABLE = "clickhouse_unreachable"
    CLICKHOUSE_REFUSES = "clickhouse_refuses"
    LOOP_DOWN = "loop_down"
    LOOP_WAITS = "loop_waits"
    LOOP_SILENT = "loop_silent"
    STREAM_STALLED = "stream_stalled"
    TABLE_STALLED = "table_stalled"
    TABLE_STOPPED = "table_stopped"
    CIRCUIT_OPEN = "circuit_open"
    TABLE_RETRIES = "table_retries"
    FAILED_SYNCS = "failed_syncs"
    REJECTED_ENTRIES = "rejected_entries"
    GAPS = "gaps"
    VERIFY_MISMATCH = "verify_mismatch"
    BEHIND = "behind"
    DISK_LOW = "disk_low"
    DISK_FILLS = "disk_fills"
    LOG_TOO_LARGE = "log_too_large"
    SNAPSHOT_FAILED = "snapshot_failed"
    REDIS_FILLS = "redis_fills"
    PAUSED = "paused"
    REPORT_OLD = "report_old"


@frozen(kw_only=True)
class Reason:
    """Why the state is what it is."""

    kind: ReasonKind
    state: State
    text: str


def find_reasons(report: StatusReport) -> Iterable[Reason]:
    """Everything that a report's numbers say is wrong."""
    yield from _engine_reasons(report)
    for loop in report.loops:
        yield from _loop_reasons(loop)
    for stream in report.streams:
        waiting = counted(stream.backlog_entries or 0, "entry", "entries")
        text = f"{waiting} of {stream.stream} wait{'s' if stream.backlog_entries == 1 else ''} and none was logged"
        yield from _stalled(ReasonKind.STREAM_STALLED, text, stream.stalled_seconds)
    for table in report.tables:
        yield from _table_reasons(table)
    yield from _record_reasons(report)
    yield from _lag_reasons(report)
    for subject in report.paused:
        what = subject.replace("table:", "table ", 1)
        yield _degraded(ReasonKind.PAUSED, f"{what} is paused: `replicator resume {subject}`")


def _degraded(kind: ReasonKind, text: str) -> Reason:
    return Reason(kind=kind, state=State.DEGRADED, text=text)


def _failed(kind: ReasonKind, text: str) -> Reason:
    return Reason(kind=kind, state=State.FAILED, text=text)


def _stalled(kind: ReasonKind, text: str, seconds: float | None) -> Iterable[Reason]:
    if seconds is not None and seconds > STALLED_SECONDS_DEGRADED:
        grave = seconds > STALLED_SECONDS_FAILED
        yield (_failed if grave else _degraded)(kind, f"{text} for {seconds:.0f} s, though the loop is alive")


def _engine_reasons(report: StatusReport) -> Iterable[Reason]:
    engines = (
        ("Redis", report.redis, ReasonKind.REDIS_UNREACHABLE, ReasonKind.REDIS_REFUSES),
        ("ClickHouse", report.clickhouse, ReasonKind.CLICKHOUSE_UNREACHABLE, ReasonKind.CLICKHOUSE_REFUSES),
    )
    for name, engine, silent, refuses in engines:
        if engine.reachable is False:
            text = engine.error or f"{name} does not answer"
            yield _failed(refuses, text) if engine.refused else _degraded(silent, text)


def _loop_reasons(loop: LoopStatus) -> Iterable[Reason]:
    if not loop.running:
        why = f": {loop.error}" if loop.error else ""
        text = f"{loop.loop} is down and is started again by itself{why}"
        yield _degraded(ReasonKind.LOOP_WAITS, text) if loop.waits_for_engine else _failed(ReasonKind.LOOP_DOWN, text)
    elif loop.hangs:
        text = f"{loop.loop} has given no sign of life for {loop.heartbeat_seconds_ago:.0f} s"
        yield _failed(ReasonKind.LOOP_SILENT, text)


def _table_reasons(table: TableStatus) -> Iterable[Reason]:
    if table.stopped:
        yield _failed(ReasonKind.TABLE_STOPPED, f"delivery of {table.table} is stopped: {table.stopped}")
    elif table.circuit == "open":
        waiting = "" if table.next_try_seconds is None else f", next probe in {table.next_try_seconds:.0f} s"
        why = f": {table.last_error}" if table.last_error else ""
        yield _degraded(ReasonKind.CIRCUIT_OPEN, f"delivery of {table.table} waits for ClickHouse{waiting}{why}")
    elif table.last_error:
        waiting = "" if table.next_try_seconds is None else f" in {table.next_try_seconds:.0f} s"
        text = f"delivery of {table.table} {_tried(table.attempt)}{waiting}: {table.last_error}"
        yield _degraded(ReasonKind.TABLE_RETRIES, text)
    else:
        are = "is" if table.pending == 1 else "are"
        text = f"{counted(table.pending or 0, 'row')} of {table.table} {are} due and none was delivered"
        yield from _stalled(ReasonKind.TABLE_STALLED, text, table.stalled_seconds)


def _tried(attempt: int | None) -> str:
    if not attempt:  # it is not the same again: a refused batch goes on in parts, what could not be read is read again
        return "failed and goes on"
    return f"failed {'once' if attempt == 1 else f'{attempt} times'} and tries again"


def _record_reasons(report: StatusReport) -> Iterable[Reason]:
    failed, rejected, gaps = report.failed_syncs, report.rejected_entries, report.gaps
    if failed.open:
        text = (
            f"{counted(failed.rows, 'parked row')} in {counted(failed.open, 'failed sync')}: `replicator failed list`"
        )
        yield _degraded(ReasonKind.FAILED_SYNCS, text)
    if rejected.open:
        text = f"{counted(rejected.open, 'entry', 'entries')} could not be logged: `replicator rejected list`"
        yield _degraded(ReasonKind.REJECTED_ENTRIES, text)
    if gaps.open:
        known = gaps.entries_lost is not None
        lost = counted(gaps.entries_lost, "entry", "entries") if known else "an unknown number of entries"
        they = "it was" if gaps.entries_lost == 1 else "they were"
        text = f"{lost} left Redis before {they} read ({counted(gaps.open, 'gap')}): `replicator gaps list`"
        yield _failed(ReasonKind.GAPS, text)
    if report.verify.mismatches:
        found = report.verify.mismatches
        differences = counted(found, "difference")
        text = f"verify found {differences} between log and ClickHouse: `replicator verify` names them"
        yield _failed(ReasonKind.VERIFY_MISMATCH, text)


def _lag_reasons(report: StatusReport) -> Iterable[Reason]:
    lag, runway = report.sink.lag_seconds, report.runway
    if report.running and lag is not None and lag > report.sync_interval_seconds + LAG_SECONDS_SLACK:
        yield _degraded(ReasonKind.BEHIND, f"the oldest undelivered change has waited {lag:.0f} s")
    if report.disk_low:
        free, floor = (f"{(n or 0) / 1e6:,.0f} MB" for n in (report.disk_free_bytes, report.disk_floor_bytes))
        text = (
            f"capture waits: the disk of {report.database} has {free} free, and [retention] min_free_bytes is {floor}; "
            "free some space, and it goes on by itself"
        )
        yield _failed(ReasonKind.DISK_LOW, text)
    if report.snapshots.error:
        yield _degraded(
            ReasonKind.SNAPSHOT_FAILED, f"the snapshot that was due was not taken: {report.snapshots.error}"
        )
    kept = report.retention
    if kept.max_bytes and kept.waits_for and (kept.bytes_used or 0) > RETENTION_SLACK * kept.max_bytes:
        text = f"the log uses {(kept.bytes_used or 0) / 1e6:,.0f} MB, above [retention] max_bytes: {kept.waits_for}"
        yield _degraded(ReasonKind.LOG_TOO_LARGE, text)
    fills = (
        (ReasonKind.DISK_FILLS, "the disk of the database", runway.disk_seconds),
        (ReasonKind.REDIS_FILLS, "Redis' memory", runway.redis_seconds),
    )
    for kind, what, seconds in fills:
        if seconds is not None and seconds < RUNWAY_SECONDS_MIN:
            grave = seconds < RUNWAY_SECONDS_MIN / 6
            yield (_failed if grave else _degraded)(kind, f"{what} is full in {seconds / 60:.0f} min at today's rate")

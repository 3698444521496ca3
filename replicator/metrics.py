"""Every instrument: name, unit, description, labels, and for those that are observed where the number comes from.

The one place that names metrics. Guarantees: what is unknown is not exported; labels are streams, tables, loops,
outcomes, reason kinds and ClickHouse codes, all bounded by the configuration. Names carry the prefix ``replicator``
and, at ``/metrics``, Prometheus' suffixes; only the two that OpenTelemetry names for every messaging client stand
under its own names. `meters` makes the instruments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import frozen

from replicator.status import ReasonKind, State, StatusReport

PREFIX = "replicator"
DURATION_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1.0, 10.0, 100.0, 1_000.0, 5_000.0, 10_000.0, 25_000.0, 50_000.0, 100_000.0)
BYTES = (1e3, 1e4, 1e5, 1e6, 5e6, 1e7, 2.5e7, 5e7, 1e8)

Point = tuple[float | None, dict[str, str]]
Read = Callable[[StatusReport], Iterable[Point]]


@frozen(kw_only=True)
class Observed:
    """An instrument whose number is read from the latest status report when it is asked for."""

    name: str
    unit: str
    description: str
    read: Read
    labels: tuple[str, ...] = ()
    counts: bool = False
    """Whether it only grows while the process lives."""


@frozen(kw_only=True)
class Recorded:
    """An instrument that is told of each insert or commit. Without ``bounds`` it is a counter."""

    name: str
    unit: str
    description: str
    labels: tuple[str, ...]
    bounds: Sequence[float] = ()


def _one(read: Callable[[StatusReport], float | None]) -> Read:
    return lambda report: [(read(report), {})]


def _observed(name: str, unit: str, description: str, read: Read, *labels: str) -> Observed:
    return Observed(name=f"{PREFIX}.{name}", unit=unit, description=description, read=read, labels=labels)


def _streams(name: str, unit: str, description: str, read: Callable[[Any], float | None]) -> Observed:
    def points(report: StatusReport) -> list[Point]:
        return [(read(stream), {"stream": stream.stream}) for stream in report.streams]

    return _observed(name, unit, description, points, "stream")


def _tables(name: str, unit: str, description: str, read: Callable[[Any], float | None]) -> Observed:
    def points(report: StatusReport) -> list[Point]:
        return [(read(table), {"table": table.table}) for table in report.tables]

    return _observed(name, unit, description, points, "table")


def _loops(name: str, unit: str, description: str, read: Callable[[Any], float | None]) -> Observed:
    def points(report: StatusReport) -> list[Point]:
        return [(read(loop), {"loop": loop.loop}) for loop in report.loops]

    return _observed(name, unit, description, points, "loop")


def _counted(name: str, unit: str, description: str, read: Callable[[StatusReport], float | None]) -> Observed:
    return Observed(name=f"{PREFIX}.{name}", unit=unit, description=description, read=_one(read), counts=True)


def _reasons(report: StatusReport) -> list[Point]:
    given = {reason.kind for reason in report.reasons}
    return [(float(kind in given), {"kind": str(kind)}) for kind in ReasonKind]


def _about(report: StatusReport) -> list[Point]:
    return [(1.0, {"pipeline": report.pipeline, "version": report.version or ""})]


_LEVELS = {State.OK: 0, State.DEGRADED: 1, State.FAILED: 2}

OBSERVED: Sequence[Observed] = (
    _counted("events_ingested", "{entry}", "Entries read from Redis and logged, kept or dropped.", lambda r: r.totals.entries_read),
    _counted("events_appended", "{change}", "Changes appended to the log.", lambda r: r.totals.changes_logged),
    _counted("events_rejected", "{entry}", "Entries or rows kept in rejected_entries.", lambda r: r.totals.rejected),
    _counted("events_duplicate", "{change}", "Changes dropped: their idempotency key was logged with the same content.", lambda r: r.totals.repeated),
    _counted("events_conflicting", "{change}", "Changes logged beside another content of the same idempotency key.", lambda r: r.totals.id_conflicts),
    _counted("commits", "{transaction}", "Transactions committed by capture.", lambda r: r.totals.commits),
    _counted("rows_synced", "{row}", "Rows durably in ClickHouse, with their ledger row.", lambda r: r.totals.rows_delivered),
    _counted("batches_synced", "{batch}", "Batches durably in ClickHouse.", lambda r: r.totals.batches_delivered),
    _counted("redis.trimmed", "{entry}", "Entries trimmed from Redis.", lambda r: r.trim.entries),
    _observed("status", "1", "0 ok, 1 degraded, 2 failed.", _one(lambda r: _LEVELS[r.state])),
    _observed("status.reason", "1", "1 while the status has a reason of this kind.", _reasons, "kind"),
    _observed("info", "1", "Always 1; the labels say what runs.", _about, "pipeline", "version"),
    _observed("log.head_offset", "{offset}", "The last logged offset.", _one(lambda r: r.log.head_offset)),
    _observed("log.changes", "{change}", "Changes the log holds.", _one(lambda r: r.log.changes)),
    _observed("log.size", "By", "The DuckDB file and its WAL.", _one(lambda r: r.log.bytes)),
    _observed("checkpoint.offset", "{offset}", "Offset up to which everything is in ClickHouse or parked.", _one(lambda r: r.sink.checkpoint_offset)),
    _observed("sink.confirmed_offset", "{offset}", "Offset up to which ClickHouse's own ledger agrees.", _one(lambda r: r.sink.confirmed_offset)),
    _observed("lag.events", "{change}", "Changes logged and not delivered, parked ones included.", _one(lambda r: r.sink.lag_changes)),
    _observed("lag.seconds", "s", "Age of the oldest change that is not delivered.", _one(lambda r: r.sink.lag_seconds)),
    _tables("circuit.open", "1", "1 while a table's delivery only probes.", lambda t: None if t.circuit is None else float(t.circuit == "open")),
    _tables("table.checkpoint_offset", "{offset}", "How far a table is delivered.", lambda t: t.checkpoint_offset),
    _tables("table.pending", "{row}", "Rows of a table that wait for delivery.", lambda t: t.pending),
    _tables("table.parked", "{row}", "Rows of a table that are parked.", lambda t: t.parked),
    _tables("table.stopped", "1", "1 while a table's delivery waits for the operator.", lambda t: float(bool(t.stopped))),
    _tables("table.stalled", "s", "How long rows have been due and none was delivered, without an error; 0 while they move.", lambda t: t.stalled_seconds),
    _tables("retry.attempts", "{attempt}", "Attempts that the batch in hand has failed.", lambda t: t.attempt),
    _streams("stream.pending", "{entry}", "Entries in Redis that are not read yet.", lambda s: s.backlog_entries),
    _streams("stream.stalled", "s", "How long entries have waited and none was logged; 0 while they move.", lambda s: s.stalled_seconds),
    _tables("schema.changes", "{change}", "How often a table was declared otherwise since it was first declared.", lambda t: None if t.schema_version is None else t.schema_version - 1),
    _observed("stream.gap_entries", "{entry}", "Entries lost to open gaps.", _one(lambda r: r.gaps.entries_lost)),
    _observed("stream.gaps_open", "{gap}", "Gaps that nobody has acknowledged.", _one(lambda r: r.gaps.open)),
    _observed("failed_syncs.open", "{range}", "Parked ranges.", _one(lambda r: r.failed_syncs.open)),
    _observed("failed_syncs.rows", "{row}", "Rows in parked ranges.", _one(lambda r: r.failed_syncs.rows)),
    _observed("failed_syncs.oldest_age", "s", "Age of the oldest parked range.", _one(lambda r: r.failed_syncs.oldest_age_seconds)),
    _observed("rejected_entries.open", "{entry}", "Rejected entries nobody has dealt with.", _one(lambda r: r.rejected_entries.open)),
    _observed("reconcile.mismatched_rows", "{row}", "Rows that the last verify found to differ.", _one(lambda r: r.verify.mismatches)),
    _observed("reconcile.last_success_age", "s", "Time since a verify found both sides equal.", _one(lambda r: r.verify.success_age_seconds)),
    _loops("loop.heartbeat_age", "s", "Time since a loop last gave a sign of life.", lambda x: x.heartbeat_seconds_ago),
    _loops("loop.running", "1", "1 while a loop runs.", lambda x: float(x.running)),
    _loops("loop.restarts", "{restart}", "How often a loop was started again.", lambda x: x.restarts),
    _observed("redis.reachable", "1", "1 while Redis answers.", _one(lambda r: r.redis.reachable)),
    _observed("clickhouse.reachable", "1", "1 while ClickHouse answers.", _one(lambda r: r.clickhouse.reachable)),
    _observed("disk.free", "By", "Free bytes where the database is.", _one(lambda r: r.disk_free_bytes)),
    _observed("runway.disk", "s", "Until the disk is full at today's rate.", _one(lambda r: r.runway.disk_seconds)),
    _observed("runway.redis", "s", "Until Redis' memory is full at today's rate.", _one(lambda r: r.runway.redis_seconds)),
    _observed("runway.catch_up", "s", "Until delivery has caught up at today's rate.", _one(lambda r: r.runway.catch_up_seconds)),
)  # fmt: skip

INSERT_DURATION = Recorded(
    name=f"{PREFIX}.insert.duration",
    unit="s",
    description="How long an insert into ClickHouse took.",
    labels=("table", "outcome"),
    bounds=DURATION_SECONDS,
)
INSERT_ROWS = Recorded(
    name=f"{PREFIX}.insert.rows",
    unit="{row}",
    description="Rows in an insert.",
    labels=("table",),
    bounds=ROWS,
)
INSERT_SIZE = Recorded(
    name=f"{PREFIX}.insert.size",
    unit="By",
    description="Bytes of Arrow in an insert.",
    labels=("table",),
    bounds=BYTES,
)
INSERT_ERRORS = Recorded(
    name=f"{PREFIX}.insert.errors",
    unit="{error}",
    description="Inserts that failed; outcome is failed or unknown, code is ClickHouse's or none.",
    labels=("table", "outcome", "code"),
)
CONSUMED_MESSAGES = Recorded(
    name="messaging.client.consumed.messages",
    unit="{message}",
    description="Entries read from a stream and logged (OpenTelemetry's name for it).",
    labels=("messaging.system", "messaging.destination.name", "messaging.consumer.group.name"),
)
PROCESS_DURATION = Recorded(
    name="messaging.process.duration",
    unit="s",
    description="From the read of a batch's first entry to its commit in the log (OpenTelemetry's name for it).",
    labels=("messaging.system", "messaging.consumer.group.name"),
    bounds=DURATION_SECONDS,
)
RECORDED: Sequence[Recorded] = (
    INSERT_DURATION,
    INSERT_ROWS,
    INSERT_SIZE,
    INSERT_ERRORS,
    CONSUMED_MESSAGES,
    PROCESS_DURATION,
)

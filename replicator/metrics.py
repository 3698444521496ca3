"""Every instrument: name, unit, description, where its number comes from. The one place that names metrics.

Guarantees: what is unknown is not exported; labels are streams, tables, loops, outcomes and ClickHouse codes, all
bounded by the configuration; a scrape costs no query, for it reads the latest status report. Names carry the prefix
``replicator`` and, at ``/metrics``, Prometheus' suffixes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
from attrs import define, field, frozen
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from replicator.deliver_work import Sink
from replicator.errors import ConfigError, OutcomeUnknown, ReplicatorError
from replicator.sink import Send
from replicator.status import State, StatusReport

EXPORT_SECONDS = 15
DURATION_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1.0, 10.0, 100.0, 1_000.0, 5_000.0, 10_000.0, 25_000.0, 50_000.0, 100_000.0)
BYTES = (1e3, 1e4, 1e5, 1e6, 5e6, 1e7, 2.5e7, 5e7, 1e8)

Point = tuple[float | None, dict[str, str]]
Read = Callable[[StatusReport], Iterable[Point]]


@frozen(kw_only=True)
class Observed:
    """An instrument whose number is read from the status report."""

    name: str
    unit: str
    description: str
    read: Read
    counts: bool = False
    """Whether it only grows while the process lives."""


def _one(read: Callable[[StatusReport], float | None]) -> Read:
    return lambda report: [(read(report), {})]


def _streams(read: Callable[[Any], float | None]) -> Read:
    return lambda report: [(read(stream), {"stream": stream.stream}) for stream in report.streams]


def _tables(read: Callable[[Any], float | None]) -> Read:
    return lambda report: [(read(table), {"table": table.table}) for table in report.tables]


def _loops(read: Callable[[Any], float | None]) -> Read:
    return lambda report: [(read(loop), {"loop": loop.loop}) for loop in report.loops]


def _observed(name: str, unit: str, description: str, read: Read) -> Observed:
    return Observed(name=f"replicator.{name}", unit=unit, description=description, read=read)


def _counted(name: str, unit: str, description: str, read: Callable[[StatusReport], float | None]) -> Observed:
    return Observed(name=f"replicator.{name}", unit=unit, description=description, read=_one(read), counts=True)


_LEVELS = {State.OK: 0, State.DEGRADED: 1, State.FAILED: 2}

OBSERVED: Sequence[Observed] = (
    _counted("events_ingested", "{entry}", "Entries read from Redis.", lambda r: r.totals.entries_read),
    _counted("events_appended", "{change}", "Changes appended to the log.", lambda r: r.totals.changes_logged),
    _counted("events_rejected", "{entry}", "Entries or rows kept in rejected_entries.", lambda r: r.totals.rejected),
    _counted("commits", "{transaction}", "Transactions committed by capture.", lambda r: r.totals.commits),
    _counted("rows_synced", "{row}", "Rows durably in ClickHouse, with their ledger row.", lambda r: r.totals.rows_delivered),
    _counted("batches_synced", "{batch}", "Batches durably in ClickHouse.", lambda r: r.totals.batches_delivered),
    _counted("redis.trimmed", "{entry}", "Entries trimmed from Redis.", lambda r: r.trim.entries),
    _observed("status", "1", "0 ok, 1 degraded, 2 failed.", _one(lambda r: _LEVELS[r.state])),
    _observed("log.head_offset", "{offset}", "The last logged offset.", _one(lambda r: r.log.head_offset)),
    _observed("log.changes", "{change}", "Changes the log holds.", _one(lambda r: r.log.changes)),
    _observed("log.size", "By", "The DuckDB file and its WAL.", _one(lambda r: r.log.bytes)),
    _observed("checkpoint.offset", "{offset}", "Offset up to which everything is in ClickHouse or parked.", _one(lambda r: r.sink.checkpoint_offset)),
    _observed("sink.confirmed_offset", "{offset}", "Offset up to which ClickHouse's own ledger agrees.", _one(lambda r: r.sink.confirmed_offset)),
    _observed("lag.events", "{change}", "Changes logged and not delivered, parked ones included.", _one(lambda r: r.sink.lag_changes)),
    _observed("lag.seconds", "s", "Age of the oldest change that is not delivered.", _one(lambda r: r.sink.lag_seconds)),
    _observed("circuit.open", "1", "1 while a table's delivery only probes.", _tables(lambda t: None if t.circuit is None else float(t.circuit == "open"))),
    _observed("table.checkpoint_offset", "{offset}", "How far a table is delivered.", _tables(lambda t: t.checkpoint_offset)),
    _observed("table.pending", "{row}", "Rows of a table that wait for delivery.", _tables(lambda t: t.pending)),
    _observed("table.parked", "{row}", "Rows of a table that are parked.", _tables(lambda t: t.parked)),
    _observed("table.stopped", "1", "1 while a table's delivery waits for the operator.", _tables(lambda t: float(bool(t.stopped)))),
    _observed("retry.attempts", "{attempt}", "Attempts that the batch in hand has failed.", _tables(lambda t: t.attempt)),
    _observed("stream.pending", "{entry}", "Entries in Redis that are not read yet.", _streams(lambda s: s.backlog_entries)),
    _observed("stream.gap_entries", "{entry}", "Entries lost to open gaps.", _one(lambda r: r.gaps.entries_lost)),
    _observed("stream.gaps_open", "{gap}", "Gaps that nobody has acknowledged.", _one(lambda r: r.gaps.open)),
    _observed("failed_syncs.open", "{range}", "Parked ranges.", _one(lambda r: r.failed_syncs.open)),
    _observed("failed_syncs.rows", "{row}", "Rows in parked ranges.", _one(lambda r: r.failed_syncs.rows)),
    _observed("failed_syncs.oldest_age", "s", "Age of the oldest parked range.", _one(lambda r: r.failed_syncs.oldest_age_seconds)),
    _observed("rejected_entries.open", "{entry}", "Rejected entries nobody has dealt with.", _one(lambda r: r.rejected_entries.open)),
    _observed("reconcile.mismatched_rows", "{row}", "Rows that the last verify found to differ.", _one(lambda r: r.verify.mismatches)),
    _observed("reconcile.last_success_age", "s", "Time since a verify found both sides equal.", _one(lambda r: r.verify.success_age_seconds)),
    _observed("loop.heartbeat_age", "s", "Time since a loop last gave a sign of life.", _loops(lambda x: x.heartbeat_seconds_ago)),
    _observed("loop.running", "1", "1 while a loop runs.", _loops(lambda x: float(x.running))),
    _observed("loop.restarts", "{restart}", "How often a loop was started again.", _loops(lambda x: x.restarts)),
    _observed("redis.reachable", "1", "1 while Redis answers.", _one(lambda r: r.redis.reachable)),
    _observed("clickhouse.reachable", "1", "1 while ClickHouse answers.", _one(lambda r: r.clickhouse.reachable)),
    _observed("disk.free", "By", "Free bytes where the database is.", _one(lambda r: r.disk_free_bytes)),
    _observed("runway.disk", "s", "Until the disk is full at today's rate.", _one(lambda r: r.runway.disk_seconds)),
    _observed("runway.redis", "s", "Until Redis' memory is full at today's rate.", _one(lambda r: r.runway.redis_seconds)),
    _observed("runway.catch_up", "s", "Until delivery has caught up at today's rate.", _one(lambda r: r.runway.catch_up_seconds)),
)  # fmt: skip


@define
class Metrics:
    """The meter, its instruments and the registry that `/metrics` renders."""

    latest: Callable[[], StatusReport | None]
    pipeline: str
    instance_id: str
    otlp_endpoint: str | None = None
    registry: CollectorRegistry = field(factory=CollectorRegistry, init=False)
    inserts: Inserts = field(init=False)
    _provider: MeterProvider = field(init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        readers: list[MetricReader] = [
            PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self.registry)
        ]
        if self.otlp_endpoint:
            readers.append(_otlp_reader(self.otlp_endpoint))
        ProcessCollector(registry=self.registry)
        resource = Resource.create(
            {
                "service.name": "replicator",
                "service.instance.id": self.instance_id,
                "replicator.pipeline": self.pipeline,
            }
        )
        self._provider = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
        meter = self._provider.get_meter("replicator")
        for instrument in OBSERVED:
            make = meter.create_observable_counter if instrument.counts else meter.create_observable_gauge
            make(
                instrument.name,
                callbacks=[self._observe(instrument.read)],
                unit=instrument.unit,
                description=instrument.description,
            )
        self.inserts = Inserts.of(meter)

    def _observe(self, read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            report = self.latest()
            points = read(report) if report is not None else ()
            return [Observation(float(value), labels) for value, labels in points if value is not None]

        return observe

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        with self._lock:
            return generate_latest(self.registry)

    def close(self) -> None:
        """Export what is left and stop."""
        self._provider.shutdown(timeout_millis=3_000)


def _otlp_reader(endpoint: str) -> MetricReader:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415 - extra
    except ImportError as error:
        raise ConfigError(
            f"replicator.toml [telemetry] otlp_endpoint = {endpoint!r}: the exporter is not installed",
            hint="pip install 'replicator[otlp]', or remove the key",
        ) from error
    url = endpoint if endpoint.rstrip("/").endswith("/v1/metrics") else f"{endpoint.rstrip('/')}/v1/metrics"
    exporter = OTLPMetricExporter(endpoint=url)
    return PeriodicExportingMetricReader(exporter, export_interval_millis=EXPORT_SECONDS * 1000)


@frozen(kw_only=True)
class Inserts:
    """What is measured at each insert into ClickHouse."""

    duration: Histogram
    rows: Histogram
    bytes: Histogram
    errors: Any

    @classmethod
    def of(cls, meter: Meter) -> Inserts:
        def histogram(name: str, unit: str, description: str, bounds: Sequence[float]) -> Histogram:
            return meter.create_histogram(
                f"replicator.insert.{name}",
                unit=unit,
                description=description,
                explicit_bucket_boundaries_advisory=bounds,
            )

        return cls(
            duration=histogram("duration", "s", "How long an insert took, by table and outcome.", DURATION_SECONDS),
            rows=histogram("rows", "{row}", "Rows in an insert.", ROWS),
            bytes=histogram("size", "By", "Bytes of Arrow in an insert.", BYTES),
            errors=meter.create_counter(
                "replicator.insert.errors",
                unit="{error}",
                description="Inserts that failed, by table, outcome (failed, unknown) and ClickHouse's code.",
            ),
        )


@define
class MeasuredSink:
    """A sink whose inserts are measured; in everything else the sink itself."""

    sink: Sink
    inserts: Inserts

    def insert(self, send: Send, batch: pa.Table) -> str:
        table, started, outcome = send.target, time.monotonic(), "failed"
        try:
            query_id = self.sink.insert(send, batch)
            outcome = "delivered"
        except ReplicatorError as error:
            outcome = "unknown" if isinstance(error, OutcomeUnknown) else "failed"
            code = str(error.code) if isinstance(error.code, int) else "none"
            self.inserts.errors.add(1, {"table": table, "outcome": outcome, "code": code})
            raise
        finally:
            self.inserts.duration.record(time.monotonic() - started, {"table": table, "outcome": outcome})
        self.inserts.rows.record(batch.num_rows, {"table": table})
        self.inserts.bytes.record(batch.nbytes, {"table": table})
        return query_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)

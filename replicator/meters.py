"""Makes the instruments that `metrics` names, takes what is measured, and exports it: `/metrics`, and OTLP.

Guarantees: a scrape costs no query, for it reads the latest status report; where nobody reads, nothing is measured;
a collector that does not answer stops nothing and delays a stop by seconds at most. Never names an instrument itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
from attrs import define, field
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from replicator.changelog import Append, ChangeLog
from replicator.deliver_work import Sink
from replicator.errors import ConfigError, OutcomeUnknown, ReplicatorError
from replicator.metrics import (
    CONSUMED_MESSAGES,
    INSERT_DURATION,
    INSERT_ERRORS,
    INSERT_ROWS,
    INSERT_SIZE,
    OBSERVED,
    PREFIX,
    PROCESS_DURATION,
    RECORDED,
    Observed,
    Read,
    Recorded,
)
from replicator.model import GENERIC_LANE, OffsetRange
from replicator.sink import Send
from replicator.status import StatusReport

EXPORT_SECONDS = 15
CLOSE_MILLISECONDS = 3_000


def resource(pipeline: str, instance_id: str) -> Resource:
    """Who says it, on every metric and span."""
    return Resource.create({"service.name": PREFIX, "service.instance.id": instance_id, f"{PREFIX}.pipeline": pipeline})


def signal_url(endpoint: str, signal: str) -> str:
    """Where a collector takes ``metrics`` or ``traces``."""
    return f"{endpoint.rstrip('/')}/v1/{signal}"


@define
class Metrics:
    """The meter, its instruments and the registry that `/metrics` renders."""

    latest: Callable[[], StatusReport | None]
    about: Resource
    otlp_endpoint: str | None = None
    observed: Sequence[Observed] = OBSERVED
    registry: CollectorRegistry = field(factory=CollectorRegistry, init=False)
    taken: Taken = field(init=False)
    _provider: MeterProvider = field(init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        readers: list[MetricReader] = [
            PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self.registry)
        ]
        if self.otlp_endpoint:
            readers.append(_otlp_reader(self.otlp_endpoint))
        ProcessCollector(registry=self.registry)
        self._provider = MeterProvider(metric_readers=readers, resource=self.about, shutdown_on_exit=False)
        meter = self._provider.get_meter(PREFIX)
        for instrument in self.observed:
            make = meter.create_observable_counter if instrument.counts else meter.create_observable_gauge
            make(
                instrument.name,
                callbacks=[self._observe(instrument.read)],
                unit=instrument.unit,
                description=instrument.description,
            )
        self.taken = Taken(meter)

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
        self._provider.shutdown(timeout_millis=CLOSE_MILLISECONDS)


def _otlp_reader(endpoint: str) -> MetricReader:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415 - extra
    except ImportError as error:
        raise exporter_missing(endpoint) from error
    exporter = OTLPMetricExporter(endpoint=signal_url(endpoint, "metrics"))
    return PeriodicExportingMetricReader(exporter, export_interval_millis=EXPORT_SECONDS * 1000)


def exporter_missing(endpoint: str) -> ConfigError:
    return ConfigError(
        f"replicator.toml [telemetry] otlp_endpoint = {endpoint!r}: the exporter is not installed",
        hint="pip install 'replicator[otlp]', or remove the key",
    )


class Taken:
    """The instruments that are told of each insert and commit."""

    def __init__(self, meter: Meter) -> None:
        self._made = {instrument.name: _make(meter, instrument) for instrument in RECORDED}

    def take(self, instrument: Recorded, value: float, *labels: str) -> None:
        """Record one value; ``labels`` in the order the instrument declares them."""
        made, attributes = self._made[instrument.name], dict(zip(instrument.labels, labels, strict=True))
        made.record(value, attributes) if isinstance(made, Histogram) else made.add(value, attributes)


def _make(meter: Meter, instrument: Recorded) -> Histogram | Counter:
    if not instrument.bounds:
        return meter.create_counter(instrument.name, unit=instrument.unit, description=instrument.description)
    return meter.create_histogram(
        instrument.name,
        unit=instrument.unit,
        description=instrument.description,
        explicit_bucket_boundaries_advisory=instrument.bounds,
    )


def table_of(target: str) -> str:
    """The table, as status names it, whose changes go to a target in ClickHouse."""
    return target if target == GENERIC_LANE else target.removesuffix("_log")


@define
class MeasuredSink:
    """A sink whose inserts are measured; in everything else the sink itself."""

    sink: Sink
    taken: Taken

    def insert(self, send: Send, batch: pa.Table) -> str:
        table, started, outcome = table_of(send.target), time.monotonic(), "failed"
        try:
            query_id = self.sink.insert(send, batch)
            outcome = "delivered"
        except ReplicatorError as error:
            outcome = "unknown" if isinstance(error, OutcomeUnknown) else "failed"
            code = str(error.code) if isinstance(error.code, int) else "none"
            self.taken.take(INSERT_ERRORS, 1, table, outcome, code)
            raise
        finally:
            self.taken.take(INSERT_DURATION, time.monotonic() - started, table, outcome)
        self.taken.take(INSERT_ROWS, batch.num_rows, table)
        self.taken.take(INSERT_SIZE, batch.nbytes, table)
        return query_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)


@define
class MeasuredLog:
    """A change log whose commits are measured; in everything else the log itself."""

    log: ChangeLog
    taken: Taken
    group: str

    def append(self, session: Any, append: Append, **more: Any) -> OffsetRange | None:
        logged = self.log.append(session, append, **more)
        origin = append.origin
        if origin is not None and origin.entries:
            self.taken.take(PROCESS_DURATION, max(0, time.time_ns() - origin.read_at_ns) / 1e9, "redis", self.group)
            for stream, entries in origin.entries.items():
                self.taken.take(CONSUMED_MESSAGES, entries, "redis", stream, self.group)
        return logged

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

"""Traces: one span per batch captured and one per batch delivered, each from its reading to its confirmation.

Guarantees: installed around the two loops' collaborators, and only where an exporter is configured: without one the
loops run as if this module did not exist. Nothing is done per change; links, spans in hand and what is remembered of
captured batches are bounded. A span tells offsets, counts, outcomes and codes, never a row's values nor an error's
text, which may quote them. Never raises into the loops and never decides anything.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import define, field, frozen
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from replicator.changelog import Append
from replicator.meters import exporter_missing, signal_url
from replicator.model import OffsetRange
from replicator.telemetry import set_trace_finder

LINKS_MAX = 32
SPANS_OPEN_MAX = 256
CAPTURED_MAX = 512
"""Captured batches that a delivered one may still be linked to."""

_PROPAGATOR = TraceContextTextMapPropagator()
Attributes = Mapping[str, Any]


@frozen(kw_only=True)
class Captured:
    """A captured batch, as a delivered one is linked to it."""

    offsets: OffsetRange
    span: SpanContext
    producers: Sequence[SpanContext]


@define
class Capturing:
    """The batch that capture has in hand, or had last."""

    span: Span
    producers: Sequence[SpanContext]
    offsets: str = ""

    def end(self) -> None:
        if self.span.is_recording():
            self.span.end()


def producer_context(traceparent: str) -> SpanContext | None:
    """The span a producer named; None when it is no W3C trace context."""
    found = trace.get_current_span(_PROPAGATOR.extract({"traceparent": traceparent})).get_span_context()
    return found if found.is_valid else None


@define
class Tracing:
    """The spans in hand. Its parts stand around the loops' collaborators; threads may call them at once."""

    provider: TracerProvider
    group: str
    """The consumer group that stands for the pipeline in Redis."""
    _open: OrderedDict[tuple[str, str], Span] = field(factory=OrderedDict)
    """Delivered batches by table and offsets."""
    _captured: deque[Captured] = field(factory=lambda: deque(maxlen=CAPTURED_MAX))
    capturing: Capturing | None = None
    _lock: threading.Lock = field(factory=threading.Lock)
    tracer: Tracer = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tracer = self.provider.get_tracer("replicator")

    @classmethod
    def exporting(cls, endpoint: str, about: Resource, group: str) -> Tracing:
        """To an OTLP collector over HTTP. Raises ConfigError where the exporter is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - extra
        except ImportError as error:
            raise exporter_missing(endpoint) from error
        return cls.to(OTLPSpanExporter(endpoint=signal_url(endpoint, "traces")), about, group)

    @classmethod
    def to(cls, exporter: SpanExporter, about: Resource, group: str) -> Tracing:
        provider = TracerProvider(resource=about, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider=provider, group=group)

    def close(self) -> None:
        """Export what has ended."""
        set_trace_finder(None)
        self.provider.shutdown()

    # ── captured ──

    def start_captured(self, append: Append) -> Capturing:
        """A span for what is about to be logged; it ends when Redis has been told, or the next one starts."""
        if self.capturing is not None:
            self.capturing.end()
        origin = append.origin
        sent = (producer_context(text) for text in (origin.traceparents if origin else ()))
        producers = [context for context in sent if context is not None][:LINKS_MAX]
        span = self.tracer.start_span(
            "capture batch",
            context=Context(),
            kind=SpanKind.CONSUMER,
            start_time=origin.read_at_ns if origin and origin.read_at_ns else None,
            links=[Link(context) for context in producers],
            attributes=self._about_captured(append),
        )
        self.capturing = Capturing(span=span, producers=producers)
        return self.capturing

    def _about_captured(self, append: Append) -> dict[str, Any]:
        entries = append.origin.entries if append.origin else {}
        about: dict[str, Any] = {
            "messaging.system": "redis",
            "messaging.operation.name": "process",
            "messaging.consumer.group.name": self.group,
            "messaging.batch.message_count": sum(entries.values()),
            "replicator.changes": append.changes.num_rows,
            "replicator.rejected": append.rejections.num_rows,
        }
        if len(entries) == 1:
            about["messaging.destination.name"] = next(iter(entries))
        return about

    def captured(self, capturing: Capturing, offsets: OffsetRange | None) -> None:
        """The batch is logged, at these offsets."""
        if offsets is None:
            return
        span = capturing.span
        span.set_attributes({"replicator.first_offset": offsets.first, "replicator.last_offset": offsets.last})
        capturing.offsets = str(offsets)
        with self._lock:
            self._captured.append(
                Captured(offsets=offsets, span=span.get_span_context(), producers=capturing.producers)
            )

    # ── delivered ──

    def of_batch(self, lane: str, offsets: OffsetRange, *, start_time: int | None = None) -> Span:
        """The batch's span; started when this is the first to be heard of it."""
        with self._lock:
            span = self._open.get((lane, str(offsets)))
            if span is None:
                span = self._open[lane, str(offsets)] = self._start_delivered(lane, offsets, start_time)
                if len(self._open) > SPANS_OPEN_MAX:
                    self._open.popitem(last=False)[1].end()
        return span

    def _start_delivered(self, lane: str, offsets: OffsetRange, start_time: int | None) -> Span:
        return self.tracer.start_span(
            "deliver batch",
            context=Context(),
            kind=SpanKind.PRODUCER,
            start_time=start_time,
            links=[Link(context) for context in self._sources(offsets)],
            attributes={
                "db.system.name": "clickhouse",
                "replicator.table": lane,
                "replicator.first_offset": offsets.first,
                "replicator.last_offset": offsets.last,
            },
        )

    def _sources(self, offsets: OffsetRange) -> list[SpanContext]:
        """The captured batches whose changes these are, and the producers' spans; at most so many."""
        overlapping = [c for c in self._captured if c.offsets.first <= offsets.last and c.offsets.last >= offsets.first]
        producers = [context for c in overlapping for context in c.producers]
        return [*(c.span for c in overlapping[: LINKS_MAX // 2]), *producers][:LINKS_MAX]

    def end_batch(self, lane: str, offsets: OffsetRange, error: str = "") -> None:
        with self._lock:
            span = self._open.pop((lane, str(offsets)), None)
        if span is not None:
            if error:
                span.set_status(Status(StatusCode.ERROR, error))
            span.end()

    def forget_batches(self) -> None:
        """Delivery begins anew: what it had in hand is told of no more."""
        with self._lock:
            open_spans, self._open = list(self._open.values()), OrderedDict()
        for span in open_spans:
            span.end()

    @contextmanager
    def within(self, name: str, span: Span, **attributes: Any) -> Iterator[Span]:
        """A child span around a step, current in this thread."""
        with self.tracer.start_as_current_span(
            name,
            context=trace.set_span_in_context(span),
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as child:
            try:
                yield child
            except BaseException as error:
                child.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    @contextmanager
    def within_each(self, name: str, spans: Iterable[Span]) -> Iterator[None]:
        """A child span in each of several batches around one step that they share."""
        started = time.time_ns()
        children = [
            self.tracer.start_span(name, context=trace.set_span_in_context(s), start_time=started) for s in spans
        ]
        try:
            yield
        except BaseException as error:
            for child in children:
                child.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            for child in children:
                child.end()

    def trace_of(self, event: Mapping[str, Any]) -> SpanContext | None:
        """The span that a log line belongs to: the current one, or that of the batch it names."""
        current = trace.get_current_span().get_span_context()
        if current.is_valid:
            return current
        offsets, lane, capturing = event.get("offsets"), event.get("lane"), self.capturing
        if offsets is None:
            return None
        if lane is None:
            return capturing.span.get_span_context() if capturing and capturing.offsets == offsets else None
        span = self._open.get((lane, offsets))
        return None if span is None else span.get_span_context()

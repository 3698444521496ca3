"""What stands around the two loops' collaborators where traces are exported: each step becomes a span of its batch.

Guarantees: everything is passed on unchanged, errors too; what is not named here goes straight to what it stands
around. Never decides anything.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define
from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from replicator.changelog import Append, ChangeLog
from replicator.deliver_work import Attempt, Outcome, Prepared, Result, Worker
from replicator.ledger import Ledger, NewBatch
from replicator.model import Batch, OffsetRange
from replicator.telemetry import set_trace_finder
from replicator.tracing import Tracing

if TYPE_CHECKING:
    from replicator.service import Service


def attach(tracing: Tracing, service: Service) -> None:
    """Stand around what the loops call, and tell log lines about a batch the trace they belong to."""
    capture, deliver = service.capture, service.deliver
    capture.changelog = TracedLog(capture.changelog, tracing)  # type: ignore[assignment]
    capture.source = TracedSource(capture.source, tracing)  # type: ignore[assignment]
    deliver.worker = TracedWorker(deliver.worker, tracing)  # type: ignore[assignment]
    deliver.ledger = TracedLedger(deliver.ledger, tracing)  # type: ignore[assignment]
    deliver.recorder.sink = TracedSink(deliver.recorder.sink, tracing)  # type: ignore[assignment]
    set_trace_finder(tracing.trace_of)


@define
class TracedLog:
    log: ChangeLog
    tracing: Tracing

    def append(self, session: Any, append: Append, **more: Any) -> OffsetRange | None:
        capturing = self.tracing.start_captured(append)
        with self.tracing.within("append", capturing.span):
            offsets = self.log.append(session, append, **more)
        self.tracing.captured(capturing, offsets)
        return offsets

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)


@define
class TracedSource:
    """What capture publishes is the last step of its batch."""

    source: Any
    tracing: Tracing

    def publish(self, positions: Any, **more: Any) -> None:
        capturing = self.tracing.capturing
        if capturing is None or not capturing.span.is_recording():
            return self.source.publish(positions, **more)
        with self.tracing.within("publish", capturing.span):
            self.source.publish(positions, **more)
        capturing.end()
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


@define
class TracedWorker:
    worker: Worker
    tracing: Tracing

    def prepare(self, lane: Any, offsets: OffsetRange, *more: Any) -> Prepared:
        started = time.time_ns()
        prepared = self.worker.prepare(lane, offsets, *more)
        span = self.tracing.of_batch(prepared.lane, prepared.offsets, start_time=started)
        span.set_attribute("replicator.rows", prepared.table.num_rows)
        child = self.tracing.tracer.start_span("read", context=trace.set_span_in_context(span), start_time=started)
        child.end()
        return prepared

    def attempt(self, attempt: Attempt) -> Outcome:
        batch = attempt.batch
        span = self.tracing.of_batch(batch.lane, batch.offsets)
        with self.tracing.within("send", span, **{"replicator.attempt": attempt.number}) as child:
            outcome = self.worker.attempt(attempt)
            _tell_outcome(child, outcome)
            return outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self.worker, name)


def _tell_outcome(span: Span, outcome: Outcome) -> None:
    span.set_attribute("replicator.outcome", str(outcome.result))
    if outcome.query_id:
        span.set_attribute("clickhouse.query_id", outcome.query_id)
    if outcome.result is Result.FAILED:
        error = outcome.error
        span.set_status(Status(StatusCode.ERROR, type(error).__name__ if error else "stopped"))
        if error is not None and error.code is not None:
            span.set_attribute("error.type", str(error.code))


@define
class TracedSink:
    """The recorder's sink."""

    sink: Any
    tracing: Tracing

    def record(self, rows: Sequence[Any]) -> None:
        batches = [(row.table_name, OffsetRange(first=row.first_offset, last=row.last_offset)) for row in rows]
        with self.tracing.within_each("ledger", [self.tracing.of_batch(*batch) for batch in batches]):
            self.sink.record(rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)


@define
class TracedLedger:
    ledger: Ledger
    tracing: Tracing

    def advance(
        self, session: Any, *, delivered: Sequence[Batch], idle: Any, frozen: Sequence[NewBatch]
    ) -> list[Batch]:
        t = self.tracing
        freezing = [t.of_batch(new.lane, new.offsets) for new in frozen]
        confirming = [t.of_batch(batch.lane, batch.offsets) for batch in delivered]
        with t.within_each("freeze", freezing), t.within_each("checkpoint", confirming):
            batches = self.ledger.advance(session, delivered=delivered, idle=idle, frozen=frozen)
        for batch in delivered:
            t.end_batch(batch.lane, batch.offsets)
        return batches

    def undelivered(self, session: Any) -> list[Batch]:
        self.tracing.forget_batches()
        return self.ledger.undelivered(session)

    def split(self, session: Any, batch: Batch, children: Sequence[NewBatch]) -> list[Batch]:
        parts = self.ledger.split(session, batch, children)
        self.tracing.end_batch(batch.lane, batch.offsets, "refused: cut in two")
        return parts

    def park(self, session: Any, batch: Batch, failure: Any) -> None:
        self.ledger.park(session, batch, failure)
        self.tracing.end_batch(batch.lane, batch.offsets, f"parked: {failure.reason}")

    def resolve(self, session: Any, failed: Any) -> None:
        self.ledger.resolve(session, failed)
        self.tracing.end_batch(failed.lane, failed.offsets)

    def split_failed(self, session: Any, failed: Any, children: Sequence[NewBatch]) -> Any:
        parts = self.ledger.split_failed(session, failed, children)
        self.tracing.end_batch(failed.lane, failed.offsets, "refused: cut in two")
        return parts

    def reject_failed(self, session: Any, failed: Any, failure: Any) -> None:
        self.ledger.reject_failed(session, failed, failure)
        self.tracing.end_batch(failed.lane, failed.offsets, f"parked: {failure.reason}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

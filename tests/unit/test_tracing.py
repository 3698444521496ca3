"""Spans of batches that do not go the straight way, what bounds them, and that telling never changes what is told of."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any, cast

import pyarrow as pa
import pytest
import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from replicator.decode import TRACEPARENTS_MAX, StreamRead, traceparents
from replicator.deliver_work import Outcome, Result
from replicator.errors import SinkRejected, SinkUnavailable
from replicator.model import Batch, Checksum, Failure, OffsetRange, ParkReason
from replicator.resp import EntryFields
from replicator.telemetry import LogOptions, configure_logging, set_trace_finder
from replicator.tracing import SPANS_OPEN_MAX, Tracing, producer_context
from replicator.tracing_steps import TracedLedger, TracedSink, TracedWorker

PARENT = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
BATCH = Batch(
    batch_id="b",
    lane="trades",
    offsets=OffsetRange(first=1, last=9),
    row_count=9,
    checksum=Checksum(rows=9, sum=1, xor=1),
    schema_version=1,
    send_seq=1,
)


class Told:
    """A collaborator that says what it is told to."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, list[str]()

    def __getattr__(self, name: str) -> Any:
        def answer(*_: object, **__: object) -> Any:
            self.asked.append(name)
            found = self.answers.get(name)
            if isinstance(found, Exception):
                raise found
            return found

        return answer


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> Iterator[Tracing]:
    found = Tracing.to(spans, Resource.get_empty(), "replicator:main")
    yield found
    found.close()


def named(tracing: Tracing, spans: InMemorySpanExporter, name: str) -> list[Any]:
    tracing.provider.force_flush()
    return [span for span in spans.get_finished_spans() if span.name == name]


def attempt(number: int = 1) -> Any:
    return cast(Any, type("Attempt", (), {"batch": BATCH, "number": number}))


def test_a_failed_send_tells_its_kind_and_code_and_not_its_words(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    error = SinkRejected("Cannot parse 'a value of a row'", code=27)
    worker = TracedWorker(cast(Any, Told(attempt=Outcome(result=Result.FAILED, error=error))), tracing)
    assert worker.attempt(attempt(2)).error is error
    (send,) = named(tracing, spans, "send")
    assert send.attributes["error.type"] == "27"
    assert (send.status.description, send.attributes["replicator.attempt"]) == ("SinkRejected", 2)
    assert "value" not in send.to_json()


def test_an_error_passes_through_as_it_was(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    error = SinkUnavailable("away with 'a value'")
    sink = TracedSink(Told(record=error), tracing)
    row = type("Row", (), {"table_name": "trades", "first_offset": 1, "last_offset": 9})
    with pytest.raises(SinkUnavailable) as raised:
        sink.record([row])
    assert raised.value is error
    (ledger,) = named(tracing, spans, "ledger")
    assert ledger.status.description == "SinkUnavailable" and "value" not in ledger.to_json()


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (
            lambda ledger: ledger.park(
                None, BATCH, Failure(reason=ParkReason.OUTAGE, code=None, message="'a value'", attempts=1)
            ),
            "parked: outage",
        ),
        (lambda ledger: ledger.split(None, BATCH, []), "refused: cut in two"),
    ],
    ids=["parked", "halved"],
)
def test_a_batch_that_leaves_the_main_path_ends_in_error(
    tracing: Tracing, spans: InMemorySpanExporter, end: Any, words: str
) -> None:
    tracing.of_batch(BATCH.lane, BATCH.offsets)
    end(TracedLedger(cast(Any, Told()), tracing))
    (span,) = named(tracing, spans, "deliver batch")
    assert span.status.description == words and "value" not in span.to_json()


def test_when_delivery_begins_anew_nothing_stays_open(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    tracing.of_batch(BATCH.lane, BATCH.offsets)
    TracedLedger(cast(Any, Told(undelivered=[BATCH])), tracing).undelivered(None)
    assert len(named(tracing, spans, "deliver batch")) == 1


def test_open_spans_are_bounded(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    for n in range(SPANS_OPEN_MAX + 5):
        tracing.of_batch("trades", OffsetRange(first=n + 1, last=n + 1))
    assert len(named(tracing, spans, "deliver batch")) == 5


def test_what_is_not_a_step_goes_straight_through(tracing: Tracing) -> None:
    told = Told(next_send=7)
    assert TracedLedger(cast(Any, told), tracing).next_send(None) == 7
    assert told.asked == ["next_send"]


@pytest.mark.parametrize(
    "text", ["", "garbage", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "ff" + PARENT[2:], PARENT[:-3], "é" * 99]
)
def test_what_is_no_trace_context_is_no_link(text: str) -> None:
    assert producer_context(text) is None
    assert producer_context(PARENT) is not None


# ── what producers sent ──


def read(fields: Any) -> StreamRead:
    return StreamRead(stream="s", stream_epoch=0, ids=[b"1-1"] * len(fields), fields=fields)


def test_trace_contexts_are_found_in_every_shape_of_read() -> None:
    columns = EntryFields((b"data", b"traceparent"), (pa.array([b"{}"] * 2), pa.array([b"a", b"b"])))
    assert traceparents(read(columns)) == ("a", "b")
    assert traceparents(read([[b"data", b"{}"], None, [b"x", b"1", b"_traceparent", b"c"], [b"data"]])) == ("c",)
    assert traceparents(read(EntryFields((b"data",), (pa.array([b"{}"]),)))) == ()
    assert traceparents(read([])) == ()
    assert traceparents(read([[b"traceparent", b"\xff\xfe"]])) == ("\ufffd\ufffd",)


def test_of_a_read_only_the_first_are_taken() -> None:
    many = [[b"data", b"{}", b"traceparent", str(n).encode()] for n in range(5_000)]
    assert len(traceparents(read(many))) == TRACEPARENTS_MAX
    column = pa.array([str(n).encode() for n in range(5_000)])
    assert len(traceparents(read(EntryFields((b"traceparent",), (column,))))) == TRACEPARENTS_MAX


# ── log lines ──


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers.clear()
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    logging.captureWarnings(False)
    set_trace_finder(None)


@pytest.mark.usefixtures("_logging_as_before")
@pytest.mark.parametrize("form", ["json", "text"])
def test_a_line_about_a_batch_names_its_trace_and_others_none(tracing: Tracing, form: str) -> None:
    stream = io.StringIO()
    configure_logging(LogOptions(format=form), stream=stream)
    set_trace_finder(tracing.trace_of)
    span = tracing.of_batch(BATCH.lane, BATCH.offsets).get_span_context()
    log = structlog.get_logger("x")
    log.info("batch_failed", lane="trades", offsets=str(BATCH.offsets))
    log.info("batch_failed", lane="orders", offsets=str(BATCH.offsets))
    with tracing.within("send", tracing.of_batch(BATCH.lane, BATCH.offsets)):
        logging.getLogger("driver").warning("slow")
    mine, other, inside = stream.getvalue().splitlines()
    assert f"{span.trace_id:032x}" in mine and f"{span.span_id:016x}" in mine
    assert "trace_id" not in other
    assert f"{span.trace_id:032x}" in inside
    if form == "json":
        assert json.loads(mine)["trace_id"] == f"{span.trace_id:032x}"

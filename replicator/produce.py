"""Load a file into a stream: what ``replicator produce`` does.

Guarantees that every row read is in Redis when ``load`` returns, or an error says how many are; digits stay as the
file has them. Must never load a row twice by itself, nor hold more than a few chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pyarrow as pa
from attrs import evolve, field, frozen
from attrs.validators import ge, gt, optional

from replicator.canonical import plain_column
from replicator.errors import ReplicatorError, UsageError
from replicator.files import Chunk, FileOptions, Reading, Wanted, read_file
from replicator.producer import Producer

FLUSH_SECONDS = 60.0
PACE_SECONDS = 0.05
"""With a rate, rows go out in pieces of about this long."""


@frozen(kw_only=True)
class LoadPlan:
    """Which rows go where, and what is said of them. The op column is taken out of the rows; the others stay."""

    stream: str
    table: str
    encoding: str = "json"
    key_columns: Sequence[str] = ()
    op: str = "u"
    op_column: str | None = None
    id_column: str | None = None
    time_column: str | None = None
    rate: float | None = field(default=None, validator=optional(gt(0)))
    limit: int | None = field(default=None, validator=optional(ge(1)))

    @property
    def control_columns(self) -> dict[str, str]:
        """The columns that say something of their row, by what they say."""
        named = {"_op": self.op_column, "_id": self.id_column, "_ts": self.time_column}
        return {control: name for control, name in named.items() if name}


@frozen(kw_only=True)
class LoadSummary:
    """What a load did."""

    rows: int
    entries: int
    bytes: int
    skipped: int
    skipped_first: Sequence[str]
    seconds: float
    first_entry_id: str | None
    last_entry_id: str | None


Progress = Callable[[int, Reading], None]


def load(producer: Producer, file: FileOptions, plan: LoadPlan, progress: Progress | None = None) -> LoadSummary:
    """Send the rows of a file and wait until they are in Redis."""
    began = time.monotonic()
    reading = Reading()
    rows = 0
    try:
        for chunk in _pieces(file, plan, reading):
            _send(producer, chunk, plan, first_row=rows + 1)
            rows += chunk.rows
            if progress:
                progress(rows, reading)
            _keep_pace(plan.rate, rows, began)
        producer.flush(FLUSH_SECONDS)
    except ReplicatorError as error:
        raise _with_counts(error, producer) from error
    sent = producer.sent
    return LoadSummary(
        rows=sent.rows,
        entries=sent.entries,
        bytes=sent.bytes,
        skipped=reading.skipped,
        skipped_first=tuple(reading.skipped_first),
        seconds=time.monotonic() - began,
        first_entry_id=producer.first_entry_id(plan.stream),
        last_entry_id=producer.last_entry_id(plan.stream),
    )


def _pieces(file: FileOptions, plan: LoadPlan, reading: Reading) -> Iterator[Chunk]:
    """Chunks no larger than the rate wants, up to the limit."""
    left = plan.limit
    if plan.rate:
        file = evolve(file, rows_max=max(1, min(file.rows_max, int(plan.rate * PACE_SECONDS))))
    needed = {*plan.key_columns, *plan.control_columns.values()}
    wanted = Wanted(
        columns=needed if plan.encoding == "json" else None, without=[plan.op_column] if plan.op_column else []
    )
    for chunk in read_file(file, wanted, reading):
        if left is not None:
            chunk = chunk.slice(0, left)  # noqa: PLW2901 - the last one is cut
            left -= chunk.rows
        yield chunk
        if left == 0:
            return


def _send(producer: Producer, chunk: Chunk, plan: LoadPlan, *, first_row: int) -> None:
    batch = _with_controls(chunk.batch, plan, first_row)
    if plan.encoding == "json" and chunk.objects is not None:
        producer.send_objects(plan.table, chunk.objects, batch, op=plan.op, first_row=first_row)
    else:
        producer.send_batch(plan.table, batch, op=plan.op, encoding=plan.encoding, first_row=first_row)


def _with_controls(batch: pa.RecordBatch, plan: LoadPlan, first_row: int) -> pa.RecordBatch:
    """The batch with its control columns under the names that the producer knows."""
    for control, name in plan.control_columns.items():
        at = batch.schema.get_field_index(name)
        if at < 0:
            where = f"rows {first_row} to {first_row + batch.num_rows - 1}"
            raise UsageError(f"{where}: no column {name!r}", hint=f"the columns are {', '.join(batch.schema.names)}")
        column = batch.column(at)
        if control == "_op" and column.null_count:
            column = plain_column(column, name).fill_null(plan.op)
        batch = batch.append_column(control, column)
    if plan.op_column:
        batch = batch.drop_columns([plan.op_column])
    return batch


def _keep_pace(rate: float | None, rows: int, began: float) -> None:
    if rate:
        time.sleep(max(0.0, began + rows / rate - time.monotonic()))


def _with_counts(error: ReplicatorError, producer: Producer) -> ReplicatorError:
    """The error, with what went in before it: those rows are in the stream and stay there."""
    with suppress(ReplicatorError):  # the error that is told already says why
        producer.flush(5)
    sent, unsent = producer.sent.rows, producer.unsent_rows
    left = f", {unsent} more were read and are not" if unsent else ""
    counts = f"{sent} rows before that are in the stream{left}" if sent or unsent else "nothing was sent"
    return type(error)(f"{error.message}; {counts}", hint=error.hint, code=error.code)

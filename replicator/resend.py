"""Sending logged changes again: under a send of their own, with the versions they were logged with.

Guarantees: a doubtful insert is never repeated while it may still run, and never under its own send again, which the
sink may remember without having the rows. Never touches a record of what was delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pyarrow as pa
import structlog
from attrs import define, frozen

from replicator.errors import OutcomeUnknown, SinkUnavailable
from replicator.lanes import Lane
from replicator.model import Checksum, OffsetRange, version_of
from replicator.retry import Ladder
from replicator.sink import ClickHouseSink, Send

RUNNING_POLL_SECONDS = 0.25

log = structlog.get_logger(__name__)


class Ready(Protocol):
    """A range as Arrow, ready for its target but for ``_send``."""

    @property
    def offsets(self) -> OffsetRange: ...
    @property
    def table(self) -> pa.Table: ...
    @property
    def checksum(self) -> Checksum: ...


@frozen(kw_only=True)
class ReadyRows:
    """Rows made ready here."""

    offsets: OffsetRange
    table: pa.Table
    checksum: Checksum


@define(kw_only=True)
class Resender:
    """``next_send`` hands out send numbers durably; ``rest`` waits, and raises where the work is to end."""

    sink: ClickHouseSink
    pipeline: str
    timeline: Callable[[], int]
    next_send: Callable[[], int]
    ladder: Ladder
    rest: Callable[[float], None]

    def send(self, lane: Lane, ready: Ready) -> None:
        """Insert a range, again while ClickHouse is away, as often as the ladder has rungs. Raises SinkUnavailable then."""
        retry = 0
        while True:
            try:
                return self._insert(lane, ready)
            except (SinkUnavailable, OutcomeUnknown) as error:
                wait = self.ladder.wait_seconds(retry)
                if wait is None:
                    raise SinkUnavailable(f"{lane.target} {ready.offsets}: {error.message}") from error
                log.warning("resend_waits", lane=lane.name, error=str(error))
                self.rest(wait)
                retry += 1

    def _insert(self, lane: Lane, ready: Ready) -> None:
        while self.sink.running(self.pipeline, lane.target, ready.offsets):
            self.rest(RUNNING_POLL_SECONDS)
        send = Send(
            pipeline=self.pipeline,
            target=lane.target,
            offsets=ready.offsets,
            checksum=ready.checksum,
            send=version_of(self.timeline(), self.next_send()),
            attempt=1,
            schema=lane.arrow,
        )
        numbers = pa.repeat(pa.scalar(send.send, pa.uint64()), ready.table.num_rows)
        self.sink.insert(send, ready.table.append_column("_send", numbers))

"""Deliver: log to ClickHouse. Scan, prepare, freeze, send, record, advance.

Guarantees: a range is frozen before its first send; data, then ledger, then checkpoint; one lane's trouble never
delays another's. What an error means is decided in `retry`; what is durable in `ledger`. Never reads Redis.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import structlog
from attrs import define, evolve, field, frozen

from replicator.capture import CaptureProgress
from replicator.database import Session, now, statement
from replicator.deliver_failure import after_failure
from replicator.deliver_lane import Circuit, LaneState, Redrive, Segment
from replicator.deliver_work import Attempt, Outcome, Prepared, Result, Sink, Worker, boot_seconds
from replicator.errors import OutcomeUnknown, ReplicatorError, SinkUnavailable
from replicator.failpoints import failpoint
from replicator.lanes import Lane
from replicator.ledger import Ledger, NewBatch
from replicator.model import GENERIC_LANE, Batch, BatchLimits, FailedSync
from replicator.retry import Ladder
from replicator.sink import LedgerRow

SCAN_OFFSETS_MAX = 2_000_000
IDLE_SECONDS = 0.2
TURN_SECONDS_MIN = 0.01
WORKERS = 4

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class DeliverSettings:
    """``lane(name, schema_version)`` is asked for each batch; ``limits`` and ``ladder`` may be reloaded."""

    pipeline: str
    instance_id: str
    lane: Callable[[str, int], Lane]
    limits: Callable[[], BatchLimits]
    ladder: Callable[[], Ladder]
    paused: Callable[[str], bool]


@frozen(kw_only=True)
class Sent:
    """A delivered batch whose ledger row and checkpoint are still to be written."""

    state: LaneState
    batch: Batch
    outcome: Outcome
    redrive: Redrive | None = None


@define
class Deliver:
    """The loop. One thread owns it and all the lane states; workers only prepare and send."""

    settings: DeliverSettings
    session: Session
    ledger: Ledger
    sink: Sink
    worker: Worker
    capture: CaptureProgress
    stop: threading.Event
    lanes: dict[str, LaneState] = field(factory=dict)
    scanned: int = 0
    heartbeat_at: float = field(factory=time.monotonic)
    delivered_rows: int = 0
    delivered_batches: int = 0
    flush: threading.Event = field(factory=threading.Event)
    """Set to have everything pending sent now, due or not."""
    requests: queue.SimpleQueue[Callable[[], None]] = field(factory=queue.SimpleQueue)
    """What others want done by this thread between two turns: see `deliver_requests`."""
    _unrecorded: list[Sent] = field(factory=list)
    _idle_saved: int = 0

    def run(self) -> None:
        """Until stopped; the batch in flight is finished or abandoned. Raises what no retry mends."""
        self._load()
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="deliver-worker") as pool:
            while not self.stop.is_set():
                self.heartbeat_at = time.monotonic()
                self.step(pool)
            self._finish()

    def step(self, pool: ThreadPoolExecutor) -> None:
        """One turn: take what finished, record it, scan what is new, freeze and send what is due."""
        while not self.requests.empty():
            self.requests.get_nowait()()
        self._take_finished()
        recorded = self._record()
        self._scan()
        self._freeze(recorded)
        for state in self.lanes.values():
            self._submit(state, pool)
        self._rest()

    # ── start ──

    def _load(self) -> None:
        """Forget everything and ask the log: positions, frozen batches, open outages."""
        self.lanes.clear()
        self._unrecorded.clear()
        positions = self.ledger.positions(self.session)
        for name, position in positions.items():
            state = self.state(name)
            state.batched, state.checkpoint = position.batched, max(position.checkpoint, position.batched)
            state.scanned = state.checkpoint
        for batch in self.ledger.undelivered(self.session):
            state = self.state(batch.lane, batch.schema_version)
            state.frozen.append(batch)
            state.ask_first = True
            state.checkpoint = min(state.checkpoint, batch.offsets.first - 1)
        for failed in self.ledger.open_failures(self.session):
            if failed.reason == "outage":
                self.add_redrive(failed, requested_by="recovery")
                self.state(failed.lane).circuit = Circuit.OPEN
        self.scanned = min((state.scanned for state in self.lanes.values()), default=0)
        self.state(GENERIC_LANE)

    def state(self, name: str, schema_version: int | None = None) -> LaneState:
        """The lane's state, made on first use."""
        if name not in self.lanes:
            self.lanes[name] = LaneState(lane=self.settings.lane(name, schema_version or 0))
        return self.lanes[name]

    def add_redrive(self, failed: FailedSync, *, requested_by: str) -> None:
        """Have a parked range sent again, beside the main path."""
        lane = self.settings.lane(failed.lane, failed.schema_version)
        prepared = self.worker.prepare(lane, failed.offsets, lane.schema_version)
        batch = Batch(
            batch_id=f"redrive-{failed.id}",
            lane=failed.lane,
            offsets=failed.offsets,
            row_count=prepared.table.num_rows,
            checksum=prepared.checksum,
            schema_version=lane.schema_version,
            send_seq=self.ledger.next_send(self.session),
        )
        self.state(failed.lane).redrives.append(Redrive(failed=failed, batch=batch, requested_by=requested_by))

    # ── scan ──

    def _scan(self) -> None:
        """Count the changes that are new since the last scan, per lane and window. Each offset is scanned once."""
        head = self.capture.released_head
        if self.scanned >= head:
            return
        limits = self.settings.limits()
        window = max(1, limits.rows_max // 4)
        end = min(head, self.scanned + SCAN_OFFSETS_MAX)
        rows = self.session.rows(statement("deliver/scan"), {"after": self.scanned, "through": end, "window": window})
        for lane, schema_version, last, count, oldest in rows:
            state = self.state(lane, schema_version)
            segment = Segment(end=last, rows=count, schema_version=schema_version, oldest_at=oldest)
            state.add(segment, merge_below=window)
        self.scanned = end
        for state in self.lanes.values():
            state.scanned = max(state.scanned, end)

    # ── freeze ──

    def _freeze(self, recorded: Sequence[Sent]) -> None:
        """One transaction: what was recorded is delivered, idle lanes follow the head, prepared ranges are frozen."""
        ready = [s for s in self.lanes.values() if s.prepared and not s.frozen and self._may_send(s)]
        idle = self._idle_positions(force=bool(recorded or ready))
        delivered = [sent.batch for sent in recorded if sent.redrive is None]
        if not (ready or idle or delivered):
            return
        failpoint("checkpoint.before")
        frozen = [_new_batch(state.prepared) for state in ready if state.prepared]
        batches = self.ledger.advance(self.session, delivered=delivered, idle=idle, frozen=frozen)
        failpoint("checkpoint.after")
        for sent in recorded:
            if sent.redrive is None:
                sent.state.checkpoint = sent.batch.offsets.last
        for name, offset in idle.items():
            self.lanes[name].checkpoint = offset
        for state, batch in zip(ready, batches, strict=True):
            state.frozen.append(batch)
        if batches:
            failpoint("freeze.after")

    def _idle_positions(self, *, force: bool) -> dict[str, int]:
        """Lanes without anything pending stand at the scanned head; saved with other work, or when it has grown far."""
        if not force and self.scanned - self._idle_saved < SCAN_OFFSETS_MAX:
            return {}
        self._idle_saved = self.scanned
        return {
            name: self.scanned
            for name, s in self.lanes.items()
            if not (s.segments or s.frozen or s.prepared or s.preparing) and s.checkpoint < self.scanned
        }

    # ── send ──

    def _may_send(self, state: LaneState) -> bool:
        tried_again = not state.stopped_reason or time.monotonic() >= state.try_at
        return state.circuit is Circuit.CLOSED and tried_again and not self.settings.paused(state.lane.name)

    def _submit(self, state: LaneState, pool: ThreadPoolExecutor) -> None:
        """Give the lane's next work to the pool: a redrive, its frozen batch, and the preparing of the range behind it."""
        if state.sending is None and time.monotonic() >= state.try_at and not self.settings.paused(state.lane.name):
            if state.redrives:
                state.redriving = state.redrives[0]
                self._send(state, state.redrives[0].batch, None, pool)
            elif state.frozen and self._may_send(state):
                self._send(state, state.frozen[0], state.prepared, pool)
                if state.prepared and state.prepared.offsets == state.frozen[0].offsets:
                    state.prepared = None
        if state.preparing is None and state.prepared is None and len(state.frozen) < 2 and self._may_send(state):
            limits = self.settings.limits()
            if state.due(limits, time.time()) or (self.flush.is_set() and state.segments):
                cut = state.cut(limits)
                lane = self.settings.lane(state.lane.name, cut.schema_version)
                state.preparing = pool.submit(self.worker.prepare, lane, cut.offsets, cut.schema_version)

    def _send(self, state: LaneState, batch: Batch, prepared: Prepared | None, pool: ThreadPoolExecutor) -> None:
        state.in_doubt_since = state.in_doubt_since or (0.0 if state.ask_first else boot_seconds())
        attempt = Attempt(
            lane=self.settings.lane(batch.lane, batch.schema_version),
            batch=batch,
            prepared=prepared if prepared and prepared.offsets == batch.offsets else None,
            number=state.retries + 1,
            ask_first=state.ask_first,
            in_doubt_since=state.in_doubt_since,
        )
        state.sending = pool.submit(self.worker.attempt, attempt)

    # ── results ──

    def _take_finished(self) -> None:
        for state in self.lanes.values():
            if state.preparing is not None and state.preparing.done():
                finished, state.preparing = state.preparing, None
                state.prepared = finished.result()
            if state.sending is not None and state.sending.done():
                done, state.sending = state.sending, None
                self._take_outcome(state, done.result())

    def _take_outcome(self, state: LaneState, outcome: Outcome) -> None:
        redrive, state.redriving = state.redriving, None
        batch = redrive.batch if redrive else state.frozen[0]
        if outcome.result in (Result.DELIVERED, Result.HELD):
            if redrive:
                state.redrives.popleft()
            else:
                state.frozen.popleft()
            state.sent()
            self._unrecorded.append(Sent(state=state, batch=batch, outcome=outcome, redrive=redrive))
        elif outcome.result is Result.NEEDS_NEW_SEND:
            state.ask_first, state.in_doubt_since = False, 0.0
            renewed = self._renewed(batch, redrive)
            if redrive:
                state.redrives[0] = evolve(redrive, batch=renewed)
            else:
                state.frozen[0] = renewed
        elif outcome.error is not None:
            after_failure(self, state, batch, redrive, outcome.error)

    def _renewed(self, batch: Batch, redrive: Redrive | None) -> Batch:
        if redrive:
            return evolve(batch, send_seq=self.ledger.next_send(self.session))
        return self.ledger.renew(self.session, batch)

    def _record(self) -> list[Sent]:
        """Write the ledger rows of everything delivered since, in one insert. On an outage they wait for the next turn."""
        sent = self._unrecorded
        if not sent or any(s.state.try_at > time.monotonic() for s in sent):
            return []
        failpoint("ledger.before")
        try:
            self.sink.record([self.ledger_row(s.batch, "delivered", s.outcome.query_id) for s in sent])
        except (SinkUnavailable, OutcomeUnknown) as error:
            self._hold_back(sent, error)
            return []
        failpoint("ledger.after")
        self._unrecorded = []
        for s in sent:
            self.delivered_rows += s.batch.row_count
            self.delivered_batches += 1
            if s.redrive is not None:
                self.ledger.resolve(self.session, s.redrive.failed)
            log.info("batch_delivered", lane=s.batch.lane, offsets=str(s.batch.offsets), rows=s.batch.row_count)
        return sent

    def _hold_back(self, sent: Sequence[Sent], error: ReplicatorError) -> None:
        ladder = self.settings.ladder()
        for s in sent:
            s.state.try_at = time.monotonic() + min(ladder.waits_seconds)
            s.state.last_error = str(error)
        log.warning("ledger_not_written", error=str(error))

    def ledger_row(self, batch: Batch, status: str, query_id: str) -> LedgerRow:
        return LedgerRow(
            pipeline=self.settings.pipeline,
            table_name=batch.lane,
            first_offset=batch.offsets.first,
            last_offset=batch.offsets.last,
            row_count=batch.row_count if status == "delivered" else 0,
            checksum=str(batch.checksum),
            status=status,
            send_seq=batch.send_seq,
            timeline=self.worker.timeline(),
            instance_id=self.settings.instance_id,
            query_id=query_id,
            delivered_at=now(),
        )

    # ── waiting ──

    def _rest(self) -> None:
        """Wait for a worker, for new changes, or for the time at which something is due; never longer than a moment."""
        busy: list[Future[object]] = [f for s in self.lanes.values() for f in (s.preparing, s.sending) if f is not None]
        if busy:
            wait(busy, timeout=IDLE_SECONDS, return_when=FIRST_COMPLETED)
            return
        self.stop.wait(TURN_SECONDS_MIN)
        if any(s.prepared and not s.frozen and self._may_send(s) for s in self.lanes.values()):
            return
        if self.flush.is_set() and self.quiet:
            self.flush.clear()
        with self.capture.appended:
            if self.capture.released_head <= self.scanned:
                self.capture.appended.wait(self._patience())

    def _patience(self) -> float:
        """Seconds until the next pending change is due, within what an idle loop may sleep."""
        age = self.settings.limits().age_seconds_max
        due = [s.oldest_at + age - time.time() for s in self.lanes.values() if s.oldest_at is not None]
        return min(IDLE_SECONDS, max(TURN_SECONDS_MIN, min(due, default=IDLE_SECONDS)))

    def _finish(self) -> None:
        """Give the batch in flight a few seconds; what is not recorded then is settled at the next start."""
        busy = [s.sending for s in self.lanes.values() if s.sending is not None]
        wait(busy, timeout=8)
        self._take_finished()
        recorded = self._record()
        if recorded:
            self.ledger.advance(
                self.session, delivered=[s.batch for s in recorded if not s.redrive], idle={}, frozen=[]
            )

    # ── what others may ask ──

    @property
    def quiet(self) -> bool:
        """Whether nothing that may be sent is waiting, in flight or unrecorded."""
        waiting = any(
            s.sending or s.preparing or (self._may_send(s) and (s.segments or s.frozen or s.prepared))
            for s in self.lanes.values()
        )
        return not waiting and not self._unrecorded

    @property
    def checkpoint(self) -> int:
        """The pipeline's checkpoint: the smallest of the lanes', one with nothing pending counting as at the head."""
        return min((self._standing(s) for s in list(self.lanes.values())), default=self.scanned)

    def _standing(self, state: LaneState) -> int:
        quiet = not (state.segments or state.frozen or state.prepared or state.preparing or state.sending)
        unrecorded = any(sent.state is state for sent in self._unrecorded)
        return max(state.checkpoint, self.scanned) if quiet and not unrecorded else state.checkpoint


def _new_batch(prepared: Prepared) -> NewBatch:
    return NewBatch(
        lane=prepared.lane,
        offsets=prepared.offsets,
        row_count=prepared.table.num_rows,
        checksum=prepared.checksum,
        schema_version=prepared.schema_version,
    )

"""Deliver: log to ClickHouse. Scan, prepare, freeze, send, record, advance.

Guarantees: a range is frozen before its first send; data, then ledger, then checkpoint; one lane's trouble never
delays another's. What an error means is decided in `retry`; what is durable in `ledger`. Never reads Redis, and
never waits for ClickHouse in its own thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

import structlog
from attrs import define, field, frozen

from replicator.capture import CaptureProgress
from replicator.database import Session, statement
from replicator.deliver_failure import resume_redrives, stop_lane
from replicator.deliver_lane import RECOVERY, Flush, LaneState, Outgoing, Redrive, Segment, Trial
from replicator.deliver_outcome import take_outcome
from replicator.deliver_pool import WorkerPool
from replicator.deliver_record import Recorder, Sent
from replicator.deliver_work import BATCH_BYTES_MAX, Attempt, Outcome, Worker, boot_seconds
from replicator.errors import DatabaseUnavailable, LogCorrupt
from replicator.failpoints import failpoint
from replicator.lanes import Lane
from replicator.ledger import Ledger
from replicator.model import GENERIC_LANE, Batch, BatchLimits, FailedSync
from replicator.retry import Ladder, told

SCAN_OFFSETS_MAX = 2_000_000
IDLE_SECONDS = 0.2
SCANS_PER_AGE = 5
"""How often new changes are looked for within the time they may wait."""
FINISH_SECONDS = 5
"""What is in flight gets at a stop: less than the loops have to end in, so that the file is closed by its owner."""
WORKERS = 4

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class DeliverSettings:
    """``lane(name, schema_version)`` is asked for each batch; ``limits`` and ``ladder`` may be reloaded."""

    lane: Callable[[str, int], Lane]
    limits: Callable[[], BatchLimits]
    ladder: Callable[[], Ladder]
    paused: Callable[[str], bool]


@define
class Deliver:
    """The loop. One thread owns it and all the lane states; workers read, send, ask and record."""

    settings: DeliverSettings
    session: Session
    ledger: Ledger
    worker: Worker
    recorder: Recorder
    capture: CaptureProgress
    stop: threading.Event
    lanes: dict[str, LaneState] = field(factory=dict)
    loaded: bool = False
    """Whether the lanes are as the file has them: until then they tell nothing."""
    scanned: int = 0
    heartbeat_at: float = field(factory=time.monotonic)
    delivered_rows: int = 0
    delivered_batches: int = 0
    flush: Flush = field(factory=Flush)
    requests: queue.SimpleQueue[Callable[[], None]] = field(factory=queue.SimpleQueue)
    """What others want done in this thread, between two turns. See `deliver_requests`."""
    pool: WorkerPool = field(factory=lambda: WorkerPool(WORKERS))
    turn: threading.RLock = field(factory=threading.RLock)
    """Held while lanes change: whoever holds it sees all of them as they stand between two turns."""
    _wanted: dict[int, str] = field(factory=dict)
    """Parked ranges (by id) that somebody asked to have sent again, and who: a restart of the loop forgets none."""
    _scan_at: float = 0.0
    _idle_saved: int = 0

    def run(self) -> None:
        """Until stopped; what is in flight is finished or abandoned. Raises what no retry mends."""
        self.pool.start(self._wake)
        try:
            self.load()
            while not self.stop.is_set():
                self.heartbeat_at = time.monotonic()
                self.step()
                self.rest()
            self._finish()
        finally:
            self._await_workers()
            self.pool.dismiss()

    def step(self) -> None:
        """One turn: take what finished, scan what is new, record, freeze and send what is due."""
        with self.turn:
            self._take_finished()
            recorded = self._take_recorded()
            self._take_requests()
            self._scan()
            self._freeze(recorded)
            self.recorder.write(self.pool)
            for state in self.lanes.values():
                if not self.settings.paused(state.lane.name):
                    self._submit(state)

    # ── start ──

    def load(self) -> None:
        """Forget everything but what was asked for, and ask the log: positions, frozen batches, open outages."""
        with self.turn:
            self._load()

    def _load(self) -> None:
        self.loaded, self.scanned = False, 0
        asked = (each for state in self.lanes.values() for each in state.redrives if not each.is_probe)
        self._wanted |= {each.failed.id: each.requested_by for each in asked}
        self.lanes.clear()
        self.recorder.forget()
        self.ledger.refresh(self.session)
        for name, position in self.ledger.positions(self.session).items():
            state = self.state(name)
            state.batched, state.stored = position.batched, True
            state.scanned = state.checkpoint = max(position.checkpoint, position.batched)
        for batch in self.ledger.undelivered(self.session):
            state = self.state(batch.lane, batch.schema_version)
            state.frozen.append(batch)
            state.trials[batch.batch_id] = Trial(ask_first=True)
            state.checkpoint = min(state.checkpoint, batch.offsets.first - 1)
        self.scanned = self._idle_saved = min((state.scanned for state in self.lanes.values()), default=0)
        for lane, offsets, parked in self.ledger.bisected(self.session):
            self.state(lane).bisected, self.state(lane).parked_rows = offsets, parked
        resume_redrives(self, self._wanted)
        self._wanted.clear()
        self.state(GENERIC_LANE)
        self.loaded = True

    def state(self, name: str, schema_version: int | None = None) -> LaneState:
        """The lane's state. A lane met for the first time has nothing up to where the log is scanned."""
        if name not in self.lanes:
            lane = self.settings.lane(name, schema_version or 0)
            self.lanes[name] = LaneState(lane=lane, checkpoint=self.scanned, scanned=self.scanned)
        return self.lanes[name]

    def add_redrive(self, failed: FailedSync, *, requested_by: str = RECOVERY, first: bool = False) -> None:
        """Have a parked range sent again, beside the main path; it may stand in the sink already, so that is asked."""
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
        state = self.state(failed.lane)
        state.trials[batch.batch_id] = Trial(ask_first=True)
        redrive = Redrive(failed=failed, batch=batch, requested_by=requested_by)
        (state.redrives.appendleft if first else state.redrives.append)(redrive)

    def _take_requests(self) -> None:
        while not self.requests.empty():
            self.requests.get()()

    # ── scan ──

    def _scan(self) -> None:
        """Count the changes that are new since the last scan, per lane and window. Each offset is scanned once."""
        head, limits = self.capture.released_head, self.settings.limits()
        due = time.monotonic() >= self._scan_at or head - self.scanned >= limits.rows_max or self.flush.is_set()
        if self.scanned >= head or not due:
            return
        self._scan_at = time.monotonic() + min(IDLE_SECONDS, limits.age_seconds_max / SCANS_PER_AGE)
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
        ready = [s for s in self.lanes.values() if self._may_freeze(s)]
        delivered = [sent.batch for sent in recorded if sent.redrive is None]
        idle = self._idle_positions(force=bool(ready or delivered))
        if not (ready or idle or delivered):
            return
        failpoint("checkpoint.before")
        frozen = [state.prepared.as_new_batch() for state in ready if state.prepared]
        batches = self.ledger.advance(self.session, delivered=delivered, idle=idle, frozen=frozen)
        failpoint("checkpoint.after")
        for sent in recorded:
            if sent.redrive is None:
                sent.state.checkpoint = sent.batch.offsets.last
        for name, offset in idle.items():
            self.lanes[name].checkpoint, self.lanes[name].stored = offset, True
        for state, batch in zip(ready, batches, strict=True):
            state.frozen.append(batch)
        if batches:
            failpoint("freeze.after")

    def _may_freeze(self, state: LaneState) -> bool:
        """One batch is frozen while the one before is on its way, so that it goes out when that one is in."""
        return state.may_freeze and not self.recorder.holds(state) and self._may_send(state)

    def _may_send(self, state: LaneState) -> bool:
        return state.may_send(time.monotonic()) and not self.settings.paused(state.lane.name)

    def _idle_positions(self, *, force: bool) -> dict[str, int]:
        """Lanes with nothing pending stand at the scanned head; saved with other work, or when it has grown far.

        A lane that the file does not know is saved as it stands: at a restart the log is scanned from the hindmost.
        """
        if not force and self.scanned - self._idle_saved < SCAN_OFFSETS_MAX:
            return {}
        self._idle_saved = self.scanned
        positions = {}
        for name, state in self.lanes.items():
            if state.idle and not self.recorder.holds(state) and state.checkpoint < self.scanned:
                positions[name] = self.scanned
            elif not state.stored:
                positions[name] = state.checkpoint
        return positions

    # ── send ──

    def _submit(self, state: LaneState) -> None:
        """Give the lane's next work to a worker: a redrive, its frozen batch, and the preparing of the range behind it."""
        clock = time.monotonic()
        if state.sending is None and clock >= state.try_at:
            if state.redrives:
                self._send(state, state.redrives[0].batch, state.redrives[0])
            elif state.frozen and state.may_send(clock):
                self._send(state, state.frozen[0], None)
        if state.may_cut and state.may_send(clock):
            self._prepare(state)

    def _prepare(self, state: LaneState) -> None:
        limits = self.settings.limits()
        due_in = state.due_in(limits, time.time())
        if due_in is None or not (due_in <= 0 or self.flush.is_set()):
            return
        cut = state.cut(limits)
        lane, bounds = self.settings.lane(state.lane.name, cut.schema_version), (BATCH_BYTES_MAX, self.flush.rows_max)
        state.preparing = self.pool.submit(lambda: self.worker.prepare(lane, cut.offsets, cut.schema_version, *bounds))

    def _send(self, state: LaneState, batch: Batch, redrive: Redrive | None) -> None:
        trial, prepared = state.trial(batch), None
        if redrive is None and state.prepared is not None and state.prepared.offsets == batch.offsets:
            prepared, state.prepared = state.prepared, None
        attempt = Attempt(
            lane=self.settings.lane(batch.lane, batch.schema_version),
            batch=batch,
            prepared=prepared,
            number=trial.retries + 1,
            ask_first=trial.ask_first,
            first_sent_at=trial.first_sent_at,
        )
        if not trial.ask_first:
            trial.first_sent_at = trial.first_sent_at or boot_seconds()
        self.send_off(state, batch, redrive, lambda: self.worker.attempt(attempt))

    def send_off(self, state: LaneState, batch: Batch, redrive: Redrive | None, task: Callable[[], Outcome]) -> None:
        """Have a worker do something with a batch; `take_outcome` takes what came of it."""
        assert state.sending is None
        state.sending = Outgoing(batch=batch, future=self.pool.submit(task), redrive=redrive)

    # ── results ──

    def _take_finished(self) -> None:
        for state in self.lanes.values():
            try:
                if state.preparing is not None and state.preparing.done():
                    self._take_prepared(state)
                if state.sending is not None and state.sending.future.done():
                    outgoing, state.sending = state.sending, None
                    take_outcome(self, state, outgoing.batch, outgoing.redrive, outgoing.future.result())
            except (LogCorrupt, DatabaseUnavailable):
                raise
            except Exception as error:  # a fault of ours in one lane must not stop the others
                log.exception("lane_failed", lane=state.lane.name)
                stop_lane(self, state, error)

    def _take_prepared(self, state: LaneState) -> None:
        preparing, state.preparing = state.preparing, None
        assert preparing is not None and state.cutting is not None
        try:
            state.prepared = prepared = preparing.result()
        except Exception as error:
            state.put_back(state.cutting.offsets.first - 1, 0)
            if not isinstance(error, DatabaseUnavailable):
                raise
            state.last_error = told(error)
            state.try_at = time.monotonic() + self.settings.ladder().waits_seconds[0]
        else:
            state.put_back(prepared.offsets.last, prepared.table.num_rows)

    def _take_recorded(self) -> list[Sent]:
        recorded = self.recorder.take(self.settings.ladder())
        for sent in recorded:
            batch, redriven = sent.batch, sent.redrive is not None
            self.delivered_rows += batch.row_count
            self.delivered_batches += 1
            if sent.redrive is not None:
                self.ledger.resolve(self.session, sent.redrive.failed)
            offsets = str(batch.offsets)
            log.info("batch_delivered", lane=batch.lane, offsets=offsets, rows=batch.row_count, redrive=redriven)
        return recorded

    # ── waiting ──

    def _wake(self) -> None:
        with self.capture.appended:
            self.capture.appended.notify_all()

    def _busy(self) -> list[Future[object]]:
        each = [f for s in self.lanes.values() for f in (s.preparing, s.sending and s.sending.future)]
        return [future for future in (*each, self.recorder.busy) if future is not None]

    def rest(self) -> None:
        """Wait for a worker, or for the time at which something is due; never longer than a moment."""
        if self.flush.is_set() and self.quiet:
            self.flush.clear()
        until = time.monotonic() + self._patience()
        with self.capture.appended:
            while not (self.stop.is_set() or any(f.done() for f in self._busy()) or not self.requests.empty()):
                remaining = until - time.monotonic()
                if self.capture.released_head > self.scanned:
                    remaining = min(remaining, self._scan_at - time.monotonic())
                if remaining <= 0:
                    return
                self.capture.appended.wait(remaining)

    def _patience(self) -> float:
        """Seconds until a lane may go on, within what an idle loop may sleep."""
        clock, wall, limits = time.monotonic(), time.time(), self.settings.limits()
        waits = [IDLE_SECONDS]
        if self.recorder.waiting and self.recorder.busy is None:
            waits.append(self.recorder.try_at - clock)
        for state in self.lanes.values():
            if self.settings.paused(state.lane.name) or state.sending is not None:
                continue
            if state.try_at > clock:
                waits.append(state.try_at - clock)
                continue
            due_in = state.due_in(limits, wall) if state.may_cut and state.may_send(clock) else None
            if due_in is not None:
                waits.append(due_in)
            if self._may_freeze(state) or (state.frozen and state.may_send(clock)) or state.redrives:
                waits.append(0.0)
        return max(0.0, min(waits))

    def _finish(self) -> None:
        """Give what is in flight a few seconds; what is not recorded then is settled at the next start."""
        deadline = time.monotonic() + FINISH_SECONDS
        while self._busy() and time.monotonic() < deadline:
            wait(self._busy(), timeout=deadline - time.monotonic())
            self._take_finished()
            recorded = self._take_recorded()
            delivered = [sent.batch for sent in recorded if sent.redrive is None]
            if delivered:
                self.ledger.advance(self.session, delivered=delivered, idle={}, frozen=[])
            self.recorder.write(self.pool)

    def _await_workers(self) -> None:
        """After an error nothing may be asked about a batch while a worker of before may still send it."""
        while (busy := [f for f in self._busy() if not f.done()]) and not self.stop.is_set():
            wait(busy, timeout=IDLE_SECONDS)

    # ── what others may ask ──

    @property
    def quiet(self) -> bool:
        """Whether nothing that may be sent is waiting, in flight or unrecorded."""
        with self.turn:
            waiting = any(s.sending or s.preparing or (self._may_send(s) and not s.idle) for s in self.lanes.values())
            return not waiting and not self.recorder.waiting and self.scanned >= self.capture.released_head

    @property
    def checkpoint(self) -> int:
        """The pipeline's checkpoint: the smallest of the lanes', one with nothing pending counting as at the head."""
        with self.turn:
            return min((self.standing(state) for state in self.lanes.values()), default=self.scanned)

    def standing(self, state: LaneState) -> int:
        """Where one lane stands; the caller holds ``turn``."""
        quiet = state.idle and not self.recorder.holds(state)
        return max(state.checkpoint, self.scanned) if quiet else state.checkpoint

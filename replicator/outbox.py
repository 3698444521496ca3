"""A bounded buffer between those who write changes and the one thread that sends them.

Guarantees: what ``add`` accepted is handed to ``deliver`` in order, again and again with a growing pause, until it
is sent; a full buffer holds its writers back; ``flush`` and ``close`` raise and say how much is unsent.
Must never drop a parcel in silence, and knows nothing of Redis.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from attrs import field, frozen
from attrs.validators import ge, gt

from replicator.errors import ReplicatorError, SourceRefused, SourceUnavailable, UsageError

_log = logging.getLogger(__name__)
_PAUSE_SECONDS_MIN = 0.05
_PAUSE_SECONDS_MAX = 2.0


@frozen(kw_only=True)
class BufferLimits:
    """How much may wait unsent, how long a writer waits for room, and how much goes to Redis at once."""

    rows_max: int = field(default=100_000, validator=gt(0))
    bytes_max: int = field(default=64 << 20, validator=gt(0))
    block_seconds: float = field(default=60.0, validator=ge(0))
    pipeline_entries: int = field(default=1000, validator=gt(0))
    pipeline_bytes: int = field(default=4 << 20, validator=gt(0))
    linger_seconds: float = field(default=0.002, validator=ge(0))


class Parcel(NamedTuple):
    """Packed commands for one stream, sent whole: ``entries`` of them, holding ``rows`` changes."""

    stream: str
    commands: bytes
    entries: int
    rows: int


Deliver = Callable[[Sequence[Parcel]], tuple[Sequence[Parcel], ReplicatorError | None]]
"""Sends parcels in order; returns those unsent and why. Raises a ReplicatorError when none is known to be sent."""


class Outbox:
    """The buffer and its sending thread, which starts with the first parcel."""

    def __init__(self, deliver: Deliver, limits: BufferLimits) -> None:
        self.limits = limits
        self._deliver = deliver
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # for the sender: something to do
        self._progress = threading.Condition(self._lock)  # for everybody else: something was sent, or failed
        self._queue: deque[tuple[int, Parcel]] = deque()
        self._in_flight: list[tuple[int, Parcel]] = []
        self._accepted = 0
        self._rows = 0
        self._bytes = 0
        self._failures = 0
        self._error: ReplicatorError | None = None
        self._hurry = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    @property
    def unsent_rows(self) -> int:
        """Changes accepted and not known to be in Redis."""
        return self._rows

    @property
    def error(self) -> ReplicatorError | None:
        """Why the latest attempt failed; None after one that succeeded."""
        return self._error

    @property
    def sender(self) -> threading.Thread | None:
        return self._thread

    def add(self, parcel: Parcel) -> None:
        """Accept a parcel, waiting up to ``block_seconds`` for room; raises when there is none."""
        size = len(parcel.commands)
        with self._lock:
            self._check_usable()
            if not self._has_room(parcel.rows, size):
                self._wait_for_room(parcel.rows, size)
            self._accepted += 1
            self._queue.append((self._accepted, parcel))
            self._rows += parcel.rows
            self._bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="replicator-producer", daemon=True)
                self._thread.start()
            if len(self._queue) == 1 or len(self._queue) == self.limits.pipeline_entries:
                self._work.notify()

    def flush(self, timeout: float | None) -> None:
        """Wait until all that was accepted so far is in Redis; raises when it is not, and keeps it."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._check_process()
            last, failures = self._accepted, self._failures
            self._hurry = True
            self._work.notify()
            while self._oldest_unsent() <= last:
                refused = isinstance(self._error, SourceRefused) and self._failures > failures
                left = None if deadline is None else deadline - time.monotonic()
                if refused or self._closed or (left is not None and left <= 0):
                    raise self._unsent_error(
                        "not in Redis" if left is None or left > 0 else f"unsent after {timeout:g} s"
                    )
                self._progress.wait(left)

    def close(self, timeout: float | None) -> None:
        """Flush, then end the thread whatever came of it; raises when changes were left unsent."""
        try:
            if not self._closed or self._rows:
                self.flush(timeout)
        finally:
            with self._lock:
                self._closed = True
                self._work.notify_all()
                self._progress.notify_all()
                thread = self._thread
            if thread is not None and thread is not threading.current_thread():
                thread.join(timeout)

    # ── the writers' side, under the lock ──

    def _check_usable(self) -> None:
        self._check_process()
        if self._closed:
            raise UsageError("the producer is closed", hint="make a new one")

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise UsageError("the producer was made in another process", hint="make one after the fork")

    def _has_room(self, rows: int, size: int) -> bool:
        """A parcel larger than the whole buffer is let in when it is alone."""
        limits = self.limits
        return not self._rows or (self._rows + rows <= limits.rows_max and self._bytes + size <= limits.bytes_max)

    def _wait_for_room(self, rows: int, size: int) -> None:
        deadline = time.monotonic() + self.limits.block_seconds
        while not self._has_room(rows, size):
            left = deadline - time.monotonic()
            if left <= 0 or isinstance(self._error, SourceRefused):
                raise self._unsent_error("in the buffer, which is full; this change was not accepted")
            self._progress.wait(left)
            self._check_usable()

    def _oldest_unsent(self) -> float:
        first = self._in_flight or self._queue
        return first[0][0] if first else float("inf")

    def _unsent_error(self, where: str) -> ReplicatorError:
        kind = type(self._error) if self._error else SourceUnavailable
        because = f": {self._error.message}" if self._error else ""
        hint = self._error.hint if self._error else "Redis is slower than the writers: wait longer, or write less"
        return kind(f"{self._rows} changes ({self._bytes} bytes) are {where}{because}", hint=hint)

    # ── the sender's side ──

    def _run(self) -> None:
        pause = _PAUSE_SECONDS_MIN
        try:
            while batch := self._take():
                error = self._attempt(batch)
                if error is None:
                    pause = _PAUSE_SECONDS_MIN
                    continue
                _log.warning("send_failed", extra={"error": str(error), "unsent_rows": self._rows})
                with self._lock:
                    self._work.wait_for(lambda: self._hurry or self._closed, pause * random.uniform(0.5, 1))  # noqa: S311
                    self._hurry = False
                pause = min(pause * 2, _PAUSE_SECONDS_MAX)
        except BaseException as error:
            _log.exception("sender_failed")
            self._die(error)

    def _take(self) -> list[tuple[int, Parcel]]:
        """The next parcels to send, waiting for one; nothing when the box is closed."""
        limits = self.limits
        with self._lock:
            self._work.wait_for(lambda: self._queue or self._closed)
            enough = limits.pipeline_entries
            self._work.wait_for(
                lambda: len(self._queue) >= enough or self._hurry or self._closed, limits.linger_seconds
            )
            self._hurry = False
            if self._closed:
                return []
            entries = size = 0
            while self._queue and entries < limits.pipeline_entries and size < limits.pipeline_bytes:
                numbered = self._queue.popleft()
                self._in_flight.append(numbered)
                entries += numbered[1].entries
                size += len(numbered[1].commands)
            return self._in_flight

    def _attempt(self, batch: list[tuple[int, Parcel]]) -> ReplicatorError | None:
        try:
            unsent, error = self._deliver([parcel for _, parcel in batch])
        except ReplicatorError as failure:
            unsent, error = [parcel for _, parcel in batch], failure
        kept = set(map(id, unsent))
        with self._lock:
            again = [numbered for numbered in batch if id(numbered[1]) in kept]
            sent = [parcel for _, parcel in batch if id(parcel) not in kept]
            self._queue.extendleft(reversed(again))
            self._in_flight = []
            self._rows -= sum(parcel.rows for parcel in sent)
            self._bytes -= sum(len(parcel.commands) for parcel in sent)
            self._error = error
            self._failures += error is not None
            self._progress.notify_all()
        return error

    def _die(self, error: BaseException) -> None:
        """The thread met a fault of ours: say so to everybody who waits, now and later."""
        with self._lock:
            self._queue.extendleft(reversed(self._in_flight))
            self._in_flight = []
            self._error = ReplicatorError(f"the sending thread failed: {error!r}", hint="this is a bug; report it")
            self._error.__cause__ = error
            self._closed = True
            self._progress.notify_all()

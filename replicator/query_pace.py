"""How much of the service's own time readers' queries may take: judging them and handing over rows.

Guarantees: while capture is busy, all queries together have at most a twentieth of one core's time in the service's
process; while it is not, they never wait. Busy is who has much to log, and who has more waiting than it comes to. What
queries compute beside the service is last in line for the processor anyway.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define, field

from replicator.capture import CaptureProgress

BUSY_CHANGES_PER_SECOND = 50_000
"""Below this capture has time to spare."""
REST_FACTOR = 19
SAMPLE_SECONDS = 0.25
BUSY_SECONDS = 5.0
"""So long it counts as busy after the last sign of it: far behind, it commits but once in a while."""
WAIT_SECONDS = 0.05


@define
class Pace:
    """Shared by all queries. ``progress`` is capture's, where one runs."""

    progress: CaptureProgress | None
    _free_at: float = 0.0
    _sampled_at: float = field(factory=time.monotonic)
    _sampled: int = 0
    _busy_until: float = 0.0
    _lock: threading.Lock = field(factory=threading.Lock)

    @contextmanager
    def work(self, unless: Callable[[], None], *, others_too: bool = False) -> Iterator[None]:
        """Inside is work that counts. Waits for its turn; ``unless`` is asked meanwhile and may raise.

        ``others_too``: DuckDB's threads work on it as well, so that all the time it takes counts, not this thread's alone.
        """
        while (wait := self._wait()) > 0:
            unless()
            time.sleep(min(wait, WAIT_SECONDS))
        clock = time.monotonic if others_too else time.thread_time
        began = clock()
        try:
            yield
        finally:
            self._charge(clock() - began)

    def _wait(self) -> float:
        with self._lock:
            clock = time.monotonic()
            if self.progress is not None and clock - self._sampled_at >= SAMPLE_SECONDS:
                grown = self.progress.changes_appended - self._sampled
                much = grown > BUSY_CHANGES_PER_SECOND * (clock - self._sampled_at)
                if much or (grown and self.progress.behind):
                    self._busy_until = clock + BUSY_SECONDS
                self._sampled_at, self._sampled = clock, self.progress.changes_appended
            return self._free_at - clock if clock < self._busy_until else 0.0

    def _charge(self, seconds: float) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + REST_FACTOR * seconds

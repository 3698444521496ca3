"""How much of the service's own time readers' queries may take: judging them and handing over rows.

Guarantees: while capture is busy, all queries together have at most a tenth of one core's time in the service's
process; while it is not, they never wait. What they compute beside it is last in line for the processor anyway.
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
REST_FACTOR = 9
SAMPLE_SECONDS = 0.25
WAIT_SECONDS = 0.05


@define
class Pace:
    """Shared by all queries. ``progress`` is capture's, where one runs."""

    progress: CaptureProgress | None
    _free_at: float = 0.0
    _sampled_at: float = field(factory=time.monotonic)
    _sampled: int = 0
    _busy: bool = False
    _lock: threading.Lock = field(factory=threading.Lock)

    @contextmanager
    def work(self, unless: Callable[[], None]) -> Iterator[None]:
        """Inside is work in this thread that counts. Waits for its turn; ``unless`` is asked meanwhile and may raise."""
        while (wait := self._wait()) > 0:
            unless()
            time.sleep(min(wait, WAIT_SECONDS))
        began = time.thread_time()
        try:
            yield
        finally:
            self._charge(time.thread_time() - began)

    def _wait(self) -> float:
        with self._lock:
            clock = time.monotonic()
            if self.progress is not None and clock - self._sampled_at >= SAMPLE_SECONDS:
                grown = self.progress.changes_appended - self._sampled
                self._busy = grown > BUSY_CHANGES_PER_SECOND * (clock - self._sampled_at)
                self._sampled_at, self._sampled = clock, self.progress.changes_appended
            return self._free_at - clock if self._busy else 0.0

    def _charge(self, seconds: float) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + REST_FACTOR * seconds

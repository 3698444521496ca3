"""How much room the disk of the database has left, and whether that is too little to go on logging.

Guarantees: once there was too little, there is enough only when clearly more is free than the floor, so that capture
does not stop and start with every megabyte; a disk that cannot be measured is not called full. Never writes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from attrs import define, field

MEASURE_SECONDS = 0.2
RESUME_PART = 8
"""One part in so many above the floor must be free before logging goes on."""

log = structlog.get_logger(__name__)


def disk_free_bytes(path: Path) -> int | None:
    """Free bytes where the file is, or will be; None where that cannot be asked."""
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


@define
class FreeSpace:
    """The guard of one disk. ``floor_bytes`` 0: there is always enough. Any thread may ask."""

    path: Path
    floor_bytes: int
    measure: Callable[[Path], int | None] = disk_free_bytes
    clock: Callable[[], float] = time.monotonic
    free_bytes: int | None = field(default=None, init=False)
    _low: bool = field(default=False, init=False)
    _measured_at: float = field(default=float("-inf"), init=False)

    @property
    def resume_bytes(self) -> int:
        """How much must be free again once there was too little."""
        return self.floor_bytes + self.floor_bytes // RESUME_PART

    def is_low(self) -> bool:
        """Whether there is too little room to log; measured a few times a second at most."""
        if self.floor_bytes and self.clock() - self._measured_at >= MEASURE_SECONDS:
            self._look()
        return self._low

    def _look(self) -> None:
        self._measured_at, self.free_bytes = self.clock(), self.measure(self.path)
        before = self._low
        enough = self.resume_bytes if before else self.floor_bytes
        self._low = self.free_bytes is not None and self.free_bytes < enough
        if self._low and not before:
            log.error("disk_low", free_bytes=self.free_bytes, floor_bytes=self.floor_bytes)
        elif before and not self._low:
            log.warning("disk_has_room_again", free_bytes=self.free_bytes)

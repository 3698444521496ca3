"""The clock that sleeps with nobody: seconds since boot, the time suspended or stopped included where the system can tell."""

from __future__ import annotations

import time


def boot_seconds() -> float:
    """Seconds since boot. ClickHouse's uptime and our lease are held against it, never against the time of day."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

"""What a piece of work cost: wall time, our CPU seconds, each server's, peak memory, bytes written. Linux and macOS.

The CPU of a server is read from ``/proc``; where there is none it is left out, never guessed.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen

TICKS = os.sysconf("SC_CLK_TCK")


@frozen(kw_only=True)
class Sample:
    """One measurement of one case."""

    changes: int
    seconds: float
    cpu_seconds: float
    server_cpu_seconds: Mapping[str, float]
    peak_mb: float
    written_mb: float | None
    more: Mapping[str, float] = field(factory=dict)

    @property
    def rate(self) -> float:
        """Changes per second."""
        return self.changes / self.seconds

    def per_million(self, seconds: float) -> float:
        return seconds / self.changes * 1e6

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@define
class Meter:
    """``with Meter(servers) as meter: …`` then ``meter.sample(changes)``. ``servers`` maps a name to a process id."""

    servers: Mapping[str, int]
    _started: tuple[float, float, dict[str, float], int | None] = field(init=False)
    _ended: tuple[float, float, dict[str, float], int | None] = field(init=False)

    def __enter__(self) -> Meter:
        self._started = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = self._now()

    def _now(self) -> tuple[float, float, dict[str, float], int | None]:
        servers = {name: cpu for name, pid in self.servers.items() if (cpu := process_cpu(pid)) is not None}
        return time.perf_counter(), time.process_time(), servers, written_bytes()

    def sample(self, changes: int, **more: float) -> Sample:
        (wall0, cpu0, servers0, io0), (wall1, cpu1, servers1, io1) = self._started, self._ended
        return Sample(
            changes=changes,
            seconds=wall1 - wall0,
            cpu_seconds=cpu1 - cpu0,
            server_cpu_seconds={name: servers1[name] - servers0[name] for name in servers1},
            peak_mb=peak_mb(),
            written_mb=None if io0 is None or io1 is None else (io1 - io0) / 1e6,
            more=more,
        )


def process_cpu(pid: int) -> float | None:
    """User and system seconds a process has used so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_mb() -> float:
    """The most memory this process has held, in MB. Linux hands a parent's ru_maxrss down, so ``/proc`` comes first."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def written_bytes() -> int | None:
    """Bytes this process has sent to the disk's layer so far."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except FileNotFoundError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))

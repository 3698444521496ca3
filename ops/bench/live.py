"""The service as anyone runs it, in a process of its own: how soon a change is visible, and what it costs to wait."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import redis
from attrs import define, field

from ops.bench.meter import Meter, Sample, process_cpu
from ops.bench.ours import opened
from ops.bench.room import Room
from ops.bench.workload import packed, trade_fields
from replicator.service import build_sink, prepare_sink
from replicator.sink import ClickHouseSink

RATE = 10_000
TICK_SECONDS = 0.01
WARM_SECONDS = 3.0
CALM_SECONDS = 15.0
"""After which nothing is left to fold or to checkpoint."""
PATIENCE_SECONDS = 120.0


def latency(room: Room) -> Sample:
    """XADD to visible in T_log, per event, while 10,000 come in each second: a percentile of all of them."""
    with opened(room) as it:
        prepare_sink(it.sink, it.catalog)
    with _service(room), Meter(room.servers) as meter:
        watcher = _Watcher(sink=build_sink(room.settings()), table=f"{room.table}_log")
        watcher.start()
        sent_at = _produce(room, room.span_seconds + WARM_SECONDS)
        waits = watcher.waits(np.repeat(sent_at, int(RATE * TICK_SECONDS)))
        watcher.stop()
    steady = waits[int(RATE * WARM_SECONDS) :] * 1000
    figures = {f"p{share}_ms": float(np.percentile(steady, share)) for share in (50, 90, 99)}
    return meter.sample(len(waits), **figures, max_ms=float(steady.max()), events_per_second=RATE)


def idle(room: Room) -> Sample:
    """The share of a core, and how much memory grows, while nothing comes in for ``room.span_seconds``."""
    with opened(room) as it:
        prepare_sink(it.sink, it.catalog)
    with _service(room) as process:
        time.sleep(CALM_SECONDS)
        with Meter(room.servers) as meter:
            cpu, before = _cpu(process), resident_mb(process.pid)
            time.sleep(room.span_seconds)
            cpu, after = _cpu(process) - cpu, resident_mb(process.pid)
    percent = 100 * cpu / room.span_seconds
    return meter.sample(1, cpu_percent=percent, start_mb=before, end_mb=after, grown_mb=after - before)


def resident_mb(pid: int | str) -> float:
    """What a process holds now. Linux."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def _service(room: Room) -> Iterator[subprocess.Popen[bytes]]:
    """``replicator run``, ready."""
    log = room.directory / "service.log"
    command = [sys.executable, "-m", "replicator", "--config-dir", str(room.directory / "config"), "run"]
    environ = {**os.environ, **room.environ()}
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=stderr, stderr=stderr, env=environ, cwd=room.directory)
    try:
        _until(lambda: _answers(process, log), "the service is ready")
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _answers(process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise SystemExit(f"the service ended: {log.read_text()[-2000:]}")
    sockets = Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]
    mine = {str(link.readlink())[8:-1] for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.is_symlink()}
    return any(line.split()[3] == "0A" and line.split()[9] in mine for line in sockets)


def _cpu(process: subprocess.Popen[bytes]) -> float:
    used = process_cpu(process.pid)
    assert used is not None, "this needs /proc"
    return used


def _produce(room: Room, seconds: float) -> np.ndarray:
    """Add events at an even rate. Returns when each tick's events were handed to Redis."""
    client = redis.Redis.from_url(room.redis_url)
    connection = client.connection_pool.get_connection()
    each, ticks = int(RATE * TICK_SECONDS), int(seconds / TICK_SECONDS)
    name, sent_at, began = room.stream.encode(), np.empty(ticks), time.monotonic()
    for tick in range(ticks):
        commands = b"".join(packed([b"XADD", name, b"*", *trade_fields(tick * each + n)]) for n in range(each))
        time.sleep(max(0.0, began + tick * TICK_SECONDS - time.monotonic()))
        sent_at[tick] = time.monotonic()
        connection.send_packed_command([commands])
        for _ in range(each):
            connection.read_response()
    client.connection_pool.release(connection)
    client.close()
    return sent_at


@define
class _Watcher:
    """Counts the rows of a table over and over: the n-th change is visible once there are n."""

    sink: ClickHouseSink
    table: str
    seen: list[tuple[float, int]] = field(factory=list)
    _stop: threading.Event = field(factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            count = int(self.sink.scalar(f"select count() from {self.table}"))
            self.seen.append((time.monotonic(), count))

    def waits(self, sent_at: np.ndarray) -> np.ndarray:
        """For each change, in the order of sending, how long it took to be visible."""
        _until(lambda: bool(self.seen) and self.seen[-1][1] >= len(sent_at), "every change is visible")
        visible_at = np.empty(len(sent_at))
        for (_, before), (at, count) in pairwise([(0.0, 0), *self.seen]):
            visible_at[before:count] = at
        return visible_at - sent_at

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self.sink.close()


def _until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE_SECONDS:g} s: {what}")
        time.sleep(0.05)

"""The product's modules on simulated threads and clocks: their names for `threading`, `queue`, `time`, put back afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import structlog
from attrs import evolve
from simulation.kernel import Kernel, Process, describe
from simulation.primitives import Datetimes, Lock, Queues, Threading, Times, Waiting

from replicator import (
    capture,
    clock,
    database,
    dedup,
    deliver,
    deliver_failure,
    deliver_pool,
    deliver_record,
    deliver_work,
    failpoints,
    reconcile,
    service,
    source,
    stream_watch,
)
from replicator.catalog import Catalog
from replicator.lanes import ROW_HASH, Lane
from replicator.log_columns import GENERIC, LEADING, TRAILING
from replicator.model import GENERIC_LANE
from replicator.service import Service

ROW_GROUP_ROWS = 5
ENTRIES_MAX = 4
"""So small that commits are cut and reads are full with a handful of changes."""


POLL_SECONDS, COMPARE_SECONDS = 1.0, 2.0


class Failpoints(dict[str, Any]):
    """In the place of those armed: every one is a step of the kernel, at which the process may die."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(armed=True)
        self.kernel = kernel

    def get(self, name: str, default: Any = None) -> None:
        self.kernel.step(name)


def _names(kernel: Kernel) -> list[tuple[Any, str, Any]]:
    times, threads, queues = Times(kernel), Threading(kernel), Queues(kernel)
    timed = (
        capture,
        clock,
        dedup,
        deliver,
        deliver_failure,
        deliver_record,
        deliver_work,
        reconcile,
        service,
        stream_watch,
    )
    return [
        *((module, "time", times) for module in timed),
        *((module, "threading", threads) for module in (capture, deliver_pool, service)),
        *((module, "queue", queues) for module in (capture, deliver_pool)),
        (deliver, "wait", Waiting(kernel)),
        (database, "datetime", Datetimes(kernel)),
        (failpoints, "_armed", Failpoints(kernel)),
        (capture, "ROW_GROUP_ROWS", ROW_GROUP_ROWS),
        (source, "ENTRIES_MAX", ENTRIES_MAX),
        (Catalog, "lane", _small_lane(Catalog.lane)),
    ]


@contextmanager
def simulated(kernel: Kernel) -> Iterator[None]:
    """The product runs on ``kernel`` inside the block, and its log lines go to the trace."""
    put_back = [(owner, name, getattr(owner, name)) for owner, name, _ in _names(kernel)]
    logging = structlog.get_config() if structlog.is_configured() else None
    try:
        for owner, name, value in _names(kernel):
            setattr(owner, name, value)
        structlog.configure(processors=[_Noted(kernel)])
        yield
    finally:
        for owner, name, value in put_back:
            setattr(owner, name, value)
        structlog.reset_defaults()
        if logging is not None:
            structlog.configure(**logging)


class _Noted:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(self, logger: Any, method: str, event: Mapping[str, Any]) -> str:
        facts = ", ".join(f"{k}={describe(v)}" for k, v in event.items() if k not in ("event", "exc_info"))
        self.kernel.note(f"{event['event']} {facts}")
        if event.get("exc_info"):  # what the service takes for a fault of its own is one
            self.kernel.failures.append(sys.exc_info()[1] or AssertionError(facts))
        raise structlog.DropEvent


def adopt(running: Service, kernel: Kernel, process: Process) -> None:
    """What a part of the service has made of the real `threading` when its class was defined."""
    threads = Threading(kernel)
    running.progress.appended = threads.Condition()  # type: ignore[assignment]
    running.capture._quit_reading = threads.Event()  # type: ignore[assignment]
    running.reconciler.sending = Lock(kernel)  # type: ignore[assignment]
    running.reconciler.turnstile = Lock(kernel)  # type: ignore[assignment]
    running.reconciler._log_checked = threads.Event()  # type: ignore[assignment]
    running.ownership._lock = Lock(kernel)  # type: ignore[assignment]
    running.ownership._wake = threads.Event()  # type: ignore[assignment]
    running.ledger._numbering = Lock(kernel)  # type: ignore[assignment]
    running.reconciler.poll_seconds, running.reconciler.compare_seconds = POLL_SECONDS, COMPARE_SECONDS
    running.space.floor_bytes = 0  # the disk of the machine that simulates is not part of the simulation
    running.source._count = ENTRIES_MAX - 1


def _small_lane(lane: Any) -> Any:
    def of(self: Catalog, name: str, schema_version: int) -> Lane:
        return _with_small_hash(lane(self, name, schema_version))

    return of


@cache
def _with_small_hash(lane: Lane) -> Lane:
    """The lane under a hash that costs little: the row carries it, so that the simulated sink need not know how it is made."""
    generic = lane.name == GENERIC_LANE
    columns = GENERIC if generic else (*LEADING, *TRAILING)
    listed = ", ".join(f"{column.source} as {column.name}" for column in columns)
    hashed = "hash(version, op, key, payload, entry_id, entry_row)"
    sql = (
        f"select {listed}, {hashed} as _hash, {hashed} as {ROW_HASH} from change_log "
        f"where log_offset between $first and $last and {lane.where}"
    )
    return evolve(lane, batch_sql=sql)

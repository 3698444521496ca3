"""The replicator itself, whole and in parts, by the service's own composition."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import structlog
from attrs import evolve

from ops.bench.meter import Meter, Sample
from ops.bench.room import Room
from replicator.model import GENERIC_LANE, OffsetRange
from replicator.service import Service, prepare_sink
from replicator.sink import ClickHouseSink
from replicator.state import applied_offset
from replicator.upkeep import FOLD_OFFSETS

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 300


def capture(room: Room) -> Sample:
    """Redis to the log, durable, DuckDB's checkpoint charged."""
    with opened(room) as service, Meter(room.servers) as meter:
        with looping(service, service.capture_all) as alive:
            wait(lambda: service.progress.changes_appended >= room.rows, alive)
        service.database.session().execute("checkpoint")
    return meter.sample(room.rows, commits=service.progress.commits)


def deliver(room: Room) -> Sample:
    """The log to ClickHouse, from a log that holds the changes already."""
    shutil.copyfile(room.log_template, room.database_path)
    with opened(room) as service:
        service.ownership.acquire(service.stop)
        prepare_sink(service.sink, service.catalog)
        head = service.changelog.head
        with Meter(room.servers) as meter:
            service.progress.release(head)
            with looping(service, service.deliver.run) as alive:
                wait(lambda: service.deliver.checkpoint >= head and service.deliver.scanned >= head, alive)
        return meter.sample(head, batches=service.deliver.delivered_batches)


def end_to_end(room: Room) -> Sample:
    """Redis to ClickHouse with both loops at once, from a full stream: until all is delivered, the folding charged."""
    with opened(room) as service:
        prepare_sink(service.sink, service.catalog)
        with Meter(room.servers) as meter:
            began = time.perf_counter()
            service.start()
            wait(lambda: service.deliver.checkpoint >= room.rows, lambda: service.fatal is None)
            seconds = time.perf_counter() - began
            wait(lambda: _folded(service), lambda: service.fatal is None)
            service.shut_down()
        counts = {"commits": service.progress.commits, "batches": service.deliver.delivered_batches}
        return evolve(meter.sample(room.rows, **counts), seconds=seconds)


def _folded(service: Service) -> bool:
    """Whether no table has more left to fold than is left when all is calm."""
    session, head = service.database.session(), service.changelog.head
    try:
        return all(head - applied_offset(session, table) < FOLD_OFFSETS for table in service.catalog.current)
    finally:
        session.close()


def fill_log(room: Room) -> Path:
    """A log that holds the stream's changes, for `deliver` and the bare limits."""
    capture(room)
    return room.database_path


def log_changes(room: Room) -> pa.Table:
    """All changes of the template log as Arrow, in memory."""
    shutil.copyfile(room.log_template, room.database_path)
    with opened(room) as service:
        return service.database.session().arrow("from change_log order by log_offset")


def ready_batches(room: Room) -> tuple[ClickHouseSink, str, list[pa.Table]]:
    """What deliver would send for the template log, and a sink to send it to; the caller closes the sink."""
    shutil.copyfile(room.log_template, room.database_path)
    with opened(room) as service:
        prepare_sink(service.sink, service.catalog)
        lane = service.catalog.lane(*_lane_of(service))
        batches = []
        for first in range(1, service.changelog.head + 1, room.batch_rows):
            offsets = OffsetRange(first=first, last=min(service.changelog.head, first + room.batch_rows - 1))
            table = service.deliver.worker.prepare(lane, offsets, lane.schema_version).table
            batches.append(table.append_column("_send", pa.repeat(pa.scalar(1, pa.uint64()), table.num_rows)))
        return service.sink, lane.target, batches


def _lane_of(service: Service) -> tuple[str, int]:
    row = service.database.session().row("select table_name, schema_version from change_log limit 1")
    assert row is not None, "the template log is empty"
    table, schema_version = row
    return (table, schema_version) if schema_version else (GENERIC_LANE, 0)


@contextmanager
def opened(room: Room) -> Iterator[Service]:
    """All the parts, none of them running."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    service = Service.build(room.settings())
    try:
        yield service
    finally:
        service.stop.set()
        service.database.close()


@contextmanager
def looping(service: Service, loop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """One loop alone, with the lease it needs."""
    thread = threading.Thread(target=loop, name="loop", daemon=True)
    owner = threading.Thread(target=service.ownership.run, args=(service.stop,), name="owner", daemon=True)
    thread.start()
    owner.start()
    try:
        yield thread.is_alive
    finally:
        service.stop.set()
        service.ownership.wake()
        thread.join()
        owner.join()


def wait(
    done: Callable[[], bool],
    alive: Callable[[], bool],
    *,
    poll_seconds: float = POLL_SECONDS,
    seconds: float = PATIENCE_SECONDS,
) -> None:
    """Until it is done; an error where the loop has ended, or it takes too long."""
    deadline = time.monotonic() + seconds
    while not done():
        if not alive() or time.monotonic() > deadline:
            raise SystemExit("the loop ended, or took too long, before everything was through")
        time.sleep(poll_seconds)

"""Logs of many millions of changes: made in no time, and what a change, a start and a look cost beside them."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve

from ops.bench.live import resident_mb
from ops.bench.meter import Meter, Sample
from ops.bench.ours import looping, opened, wait
from ops.bench.room import Room
from ops.bench.tables import MAKE_CHANGES
from ops.bench.workload import KEYS
from replicator.capture import ROW_GROUP_ROWS
from replicator.catalog import Catalog
from replicator.config import migrations_dir
from replicator.database import Database, DatabaseOptions
from replicator.running import RunningService
from replicator.service import Service, prepare_sink
from replicator.state import FOLD_OFFSETS_MAX, fold

LOOKS = 5


def big_log(room: Room, path: Path, rows: int, *, delivered: bool) -> Path:
    """A log of ``rows`` changes of the typed table, as capture would have left it; ``delivered`` and folded, or not."""
    database = Database.open(DatabaseOptions(path=path, threads=2, memory_mb=room.cache_mb))
    database.migrate(migrations_dir() / "duckdb")
    settings = room.settings()
    catalog, session = Catalog.open(database, settings.tables, [room.stream]), database.session()
    step = 8 * ROW_GROUP_ROWS
    for first in range(1, rows + 1, step):
        session.execute(MAKE_CHANGES.format(keys=KEYS, first=first, last=min(rows, first + step - 1)))
    if delivered:
        session.execute(
            f"insert into checkpoints values ('{room.table}', {rows}, now()), ('change_log', {rows}, now())"
        )
        for _ in range(0, rows, FOLD_OFFSETS_MAX):
            fold(session, catalog.current[room.table], rows)
    session.execute("checkpoint")
    session.close()
    database.close()
    return path


def beside(room: Room) -> Sample:
    """What the stream's changes cost to capture and to deliver, and status and one key's state to look at."""
    shutil.copyfile(room.log_template, room.database_path)
    with opened(room) as it:
        head = it.changelog.head + room.rows
        it.ownership.acquire(it.stop)
        prepare_sink(it.sink, it.catalog)
        with Meter(room.servers) as meter:
            capture_cpu = _cpu_of(it, it.capture.run, lambda: it.progress.changes_appended >= room.rows)
            deliver_cpu = _cpu_of(it, it.deliver.run, lambda: it.deliver.checkpoint >= head)
        session = it.database.session()
        key = [session.row(f"select trade_id from {room.table}_log where _offset = {head}")[0]]
        key_ms = _best_ms(lambda: session.rows(f"select * from {room.table} where trade_id = ?", key))
        session.close()
    evolved = evolve(room, name=f"{room.name}_status")
    looked = RunningService.build(evolved.settings(), evolved.settings)
    status_ms = _best_ms(looked.watch.report)
    looked.service.shut_down()
    looked.http.stop()
    figures = {"capture_us": capture_cpu / room.rows * 1e6, "deliver_us": deliver_cpu / room.rows * 1e6}
    return meter.sample(room.rows, **figures, status_ms=status_ms, key_ms=key_ms)


def start(room: Room) -> Sample:
    """From opening the file to the first batch that is delivered, with everything in the log still to be sent."""
    shutil.copyfile(room.log_template, room.database_path)
    with opened(room) as it:  # a start as any but the first: the tables are there
        prepare_sink(it.sink, it.catalog)
    with Meter(room.servers) as meter:
        began = time.monotonic()
        it = Service.build(room.settings())
        open_at = time.monotonic()
        it.start()
        wait(lambda: it.deliver.delivered_batches > 0, lambda: it.fatal is None, poll_seconds=0.005)
        ended = time.monotonic()
    it.shut_down()
    return meter.sample(it.deliver.delivered_rows, seconds=ended - began, open_seconds=open_at - began)


def backlog(room: Room) -> Sample:
    """A full stream to ClickHouse; the memory at each tenth of the way."""
    held: dict[str, float] = {}
    with opened(room) as it:
        prepare_sink(it.sink, it.catalog)
        done = threading.Event()
        sampler = threading.Thread(target=_sample_memory, args=(room, it, held, done), daemon=True)
        with Meter(room.servers) as meter:
            it.start()
            sampler.start()
            wait(lambda: it.deliver.checkpoint >= room.rows, lambda: it.fatal is None, seconds=room.rows / 5_000)
            done.set()
            it.shut_down()
        sampler.join()
    return meter.sample(room.rows, **held)


def _sample_memory(room: Room, it: Service, held: dict[str, float], done: threading.Event) -> None:
    while not done.wait(0.25):
        tenth = f"mb_at_{min(100, 10 * (1 + 10 * it.deliver.checkpoint // room.rows)):03d}"
        held[tenth] = max(held.get(tenth, 0.0), resident_mb("self"))


def _cpu_of(it: Service, loop: Callable[[], None], done: Callable[[], bool]) -> float:
    it.stop.clear()
    began = time.process_time()
    with looping(it, loop) as alive:
        wait(done, alive)
    return time.process_time() - began


def _best_ms(look: Callable[[], Any]) -> float:
    look()
    best = float("inf")
    for _ in range(LOOKS):
        began = time.perf_counter()
        look()
        best = min(best, time.perf_counter() - began)
    return best * 1000

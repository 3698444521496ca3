"""The composition root: builds the parts from the settings, runs the loops, stops them in order.

Guarantees: a loop that fails is started again with growing waits; an error that no restart mends ends the process
with a clear last line; a stop takes at most ten seconds and loses nothing. The only place that builds adapters.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence

import structlog
from attrs import define, field

from replicator.admit import Admission
from replicator.capture import Capture, CaptureProgress, CaptureSettings
from replicator.catalog import Catalog
from replicator.changelog import ChangeLog, StreamPosition
from replicator.config import Settings
from replicator.controls import CAPTURE, Controls
from replicator.database import Database
from replicator.dedup import Window
from replicator.deliver import Deliver, DeliverSettings
from replicator.deliver_record import Recorder
from replicator.deliver_work import Worker
from replicator.errors import (
    ConfigError,
    LogCorrupt,
    OutcomeUnknown,
    OwnershipLost,
    ReplicatorError,
    SinkTurned,
    SinkUnavailable,
    SourceUnavailable,
)
from replicator.free_space import FreeSpace
from replicator.ledger import Ledger
from replicator.model import NO_ENTRY, BatchLimits, EntryId
from replicator.ownership import Ownership, seat_of
from replicator.reconcile import Reconciler
from replicator.retry import Ladder
from replicator.service_keep import Keeping
from replicator.service_open import open_database
from replicator.service_rebuild import settle_rebuilds
from replicator.service_reconcile import build_reconciler, prepare_sink
from replicator.sink import ClickHouseSink, SinkOptions
from replicator.source import RedisSource, SourceOptions
from replicator.upkeep import Upkeep

RESTART_SECONDS = (0.5, 1, 2, 5, 10, 30)
STEADY_SECONDS = 60
"""A loop that ran so long is steady again: its next failure waits the shortest time."""
STOP_SECONDS = 7
"""What the loops get of the ten seconds that a stop may take; the process needs some itself to end."""
FATAL = (LogCorrupt, OwnershipLost, ConfigError)
SILENT = (SourceUnavailable, SinkUnavailable, OutcomeUnknown)

log = structlog.get_logger(__name__)


def build_sink(settings: Settings) -> ClickHouseSink:
    c = settings.clickhouse
    return ClickHouseSink(
        SinkOptions(
            endpoint=c.endpoint,
            database=c.database,
            user=c.user,
            password=c.password,
            ca_cert=None if c.ca_cert is None else str(c.ca_cert),
            connect_timeout_seconds=c.connect_timeout_sec,
            insert_timeout_seconds=c.insert_timeout_sec,
        )
    )


def build_source(settings: Settings) -> RedisSource:
    r = settings.redis
    options = SourceOptions(url=r.url, username=r.username, password=r.password, pipeline=settings.pipeline.name)
    return RedisSource(options)


@define
class LoopHealth:
    """How a supervised loop is doing."""

    name: str
    running: bool = False
    restarts: int = 0
    error: str = ""
    unavailable: bool = False
    """Down only because Redis or ClickHouse does not answer: it goes on by itself when they do."""
    started_at: float = 0.0


@define
class Service:
    """Everything that runs, for one pipeline. Build it with `Service.build`."""

    settings: Settings
    database: Database
    catalog: Catalog
    controls: Controls
    changelog: ChangeLog
    ledger: Ledger
    source: RedisSource
    sink: ClickHouseSink
    progress: CaptureProgress
    capture: Capture
    space: FreeSpace
    deliver: Deliver
    upkeep: Upkeep
    ownership: Ownership
    instance_id: str
    stop: threading.Event
    reconciler: Reconciler = field(init=False)
    keeping: Keeping = field(init=False)
    started_at: float = field(factory=time.time)
    loops: dict[str, LoopHealth] = field(factory=dict)
    fatal: ReplicatorError | None = None
    rebuilding: set[str] = field(factory=set)
    _threads: list[threading.Thread] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.reconciler = build_reconciler(self)
        self.keeping = Keeping.of(self)

    @classmethod
    def build(cls, settings: Settings, kept: Sequence[str] = ()) -> Service:
        """All parts, connected to nothing but the file; tables ``kept`` are as it has them. Raises what opening it raises."""
        database = open_database(settings)
        stop, progress = threading.Event(), CaptureProgress()
        catalog = Catalog.configured(database, settings, kept)
        controls = Controls.open(database)
        changelog = ChangeLog.open(database)
        ledger = Ledger.open(database, settings.writer.error_handling.failed_sync_table)
        instance_id = _instance_id(database)
        source, sink = build_source(settings), build_sink(settings)
        ownership = _build_ownership(settings, changelog, source, instance_id)
        sink.may_send = ownership.check_sending
        space = FreeSpace(path=database.options.path, floor_bytes=settings.retention.min_free_bytes)
        capture = Capture(
            settings=_capture_settings(settings, catalog, source),
            source=source,
            changelog=changelog,
            admission=Admission(session=database.session(), catalog=catalog),
            session=database.session(),
            progress=progress,
            stop=stop,
            paused=lambda: controls.is_paused(CAPTURE) or space.is_low(),
            may_log=ownership.check,
        )
        deliver = _build_deliver(
            settings=settings,
            database=database,
            catalog=catalog,
            controls=controls,
            changelog=changelog,
            ledger=ledger,
            sink=sink,
            progress=progress,
            instance_id=instance_id,
            stop=stop,
        )
        upkeep = Upkeep(database, database.session(), catalog, progress, stop, may_grow=lambda: not space.is_low())
        return cls(
            settings=settings,
            database=database,
            catalog=catalog,
            controls=controls,
            changelog=changelog,
            ledger=ledger,
            source=source,
            sink=sink,
            progress=progress,
            capture=capture,
            space=space,
            deliver=deliver,
            upkeep=upkeep,
            ownership=ownership,
            instance_id=instance_id,
            stop=stop,
        )

    def start(self) -> None:
        """Start the loops, each in a thread of its own, supervised."""
        self.supervise("capture", self.capture_all)
        self.supervise("ownership", lambda: self.ownership.run(self.stop))
        self.supervise("deliver", self.deliver_all)
        self.supervise("reconcile", self.reconciler.watch)
        self.supervise("upkeep", self.upkeep.run)
        self.keeping.start()

    def run(self) -> None:
        """Start, wait until stopped, stop in order. Raises the error that no restart mends."""
        self.start()
        self.stop.wait()
        self.shut_down()
        if self.fatal is not None:
            raise self.fatal

    def shut_down(self, *, deadline: float | None = None) -> None:
        """Stop the loops by then and close the file. What was in flight is settled at the next start."""
        self.stop.set()
        self.ownership.wake()
        with self.progress.appended:
            self.progress.appended.notify_all()
        deadline = deadline or time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        late = [thread.name for thread in self._threads if thread.is_alive()]
        if late:
            log.warning("loops_abandoned", loops=late)
        else:  # what an abandoned loop still holds ends with the process
            self._release()
            self.source.close()
            self.sink.close()
            self.database.close()
        log.info("service_stopped")

    def supervise(self, name: str, loop: Callable[[], None]) -> None:
        """Keep a loop running in a thread of its own until the service stops."""
        health = self.loops[name] = LoopHealth(name=name)
        thread = threading.Thread(target=self._keep_running, args=(health, loop), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _keep_running(self, health: LoopHealth, loop: Callable[[], None]) -> None:
        failures = 0
        while not self.stop.is_set():
            health.running, health.started_at = True, time.monotonic()
            try:
                loop()
            except FATAL as error:
                self._end(health, error)
            except Exception as error:
                failures = 0 if time.monotonic() - health.started_at > STEADY_SECONDS else failures
                health.running, health.error = False, str(error)
                health.unavailable = isinstance(error, SILENT)
                expected = isinstance(error, ReplicatorError)
                log.error("loop_failed", loop=health.name, error=str(error), exc_info=not expected)
                self.stop.wait(RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)])
                failures += 1
                health.restarts += 1
            else:
                health.running = False

    def _end(self, health: LoopHealth, error: ReplicatorError) -> None:
        health.running, health.error = False, str(error)
        self.fatal = self.fatal or error
        log.critical("service_ends", loop=health.name, error=str(error))
        self.stop.set()

    def _release(self) -> None:
        try:
            self.ownership.release()
        except SourceUnavailable as error:  # it expires by itself
            log.warning("lease_not_released", error=str(error))

    def capture_all(self) -> None:
        """Capture begins when the pipeline is ours and the log is whole."""
        self.ownership.acquire(self.stop)
        if not self.stop.is_set():
            self.reconciler.check_log()
            self.capture.run()

    def deliver_all(self) -> None:
        """Deliver begins when the sink has our tables and what it was given; until then capture goes on without it."""
        while not self.stop.is_set():
            self.reconciler.await_log()
            try:
                with self.reconciler.may_send():
                    settle_rebuilds(self)
                    prepare_sink(self.sink, self.catalog)
                    self.reconciler.check_sink()
                    self.deliver.run()
            except SinkTurned as error:
                log.warning("sink_turned", error=str(error))

    def interrupt_delivery(self, error: ReplicatorError) -> None:
        """Have deliver settle what is under way and begin anew."""

        def end() -> None:
            raise error

        self.deliver.requests.put(end)
        with self.progress.appended:
            self.progress.appended.notify_all()

    def reload(self, settings: Settings) -> list[str]:
        """Take the tables and streams of settings read again. Returns what changed; raises ConfigError, and nothing was."""
        changed = self.catalog.declare(settings.tables, settings.redis.streams)
        log.info("configuration_reloaded", changed=changed)
        return changed


def _capture_settings(settings: Settings, catalog: Catalog, source: RedisSource) -> CaptureSettings:
    return CaptureSettings(
        streams=lambda: catalog.routes.streams,
        routes=lambda: catalog.routes,
        first_position=lambda stream: first_position(settings, source, stream),
        ids=Window(seconds=settings.dedup.window_sec, ids=settings.dedup.window_ids),
    )


def _build_deliver(
    *,
    settings: Settings,
    database: Database,
    catalog: Catalog,
    controls: Controls,
    changelog: ChangeLog,
    ledger: Ledger,
    sink: ClickHouseSink,
    progress: CaptureProgress,
    instance_id: str,
    stop: threading.Event,
) -> Deliver:
    sync, errors = settings.writer.sync, settings.writer.error_handling
    limits = BatchLimits(rows_max=sync.batch_size, age_seconds_max=sync.sync_interval_sec)
    ladder = Ladder(waits_seconds=errors.retry_backoff_sec, retries_max=sync.max_retry_attempts)
    return Deliver(
        settings=DeliverSettings(
            lane=catalog.lane,
            limits=lambda: limits,
            ladder=lambda: ladder,
            paused=controls.lane_paused,
        ),
        session=database.session(),
        ledger=ledger,
        worker=Worker(
            database=database,
            sink=sink,
            pipeline=settings.pipeline.name,
            timeline=lambda: changelog.timeline,
            stop=stop,
            ensure=lambda lane: catalog.ensure(sink, lane),
            oldest=lambda: changelog.oldest,
        ),
        recorder=Recorder(
            sink=sink,
            pipeline=settings.pipeline.name,
            instance_id=instance_id,
            timeline=lambda: changelog.timeline,
        ),
        capture=progress,
        stop=stop,
    )


def _build_ownership(settings: Settings, changelog: ChangeLog, source: RedisSource, instance_id: str) -> Ownership:
    return Ownership(
        store=source,
        pipeline=settings.pipeline.name,
        instance_id=instance_id,
        seat=seat_of(changelog.database.options.path),
        file_empty=changelog.head == 0,
    )


def first_position(settings: Settings, source: RedisSource, stream: str) -> StreamPosition:
    """Where a stream that was never read begins, as ``[redis] start_from`` has it."""
    start = settings.redis.start_from
    if start == "oldest":
        return StreamPosition(stream=stream)
    about = source.describe(stream)
    entry_id = about.last_entry_id if start == "newest" else EntryId(start)
    return StreamPosition(stream=stream, last_entry_id=entry_id if about.exists or start != "newest" else NO_ENTRY)


def _instance_id(database: Database) -> str:
    """The file's own name for itself, given once."""
    session = database.session()
    row = session.row("select value from meta where key = 'instance_id'")
    if row is None:
        row = (uuid.uuid4().hex,)
        session.execute("insert into meta values ('instance_id', ?)", [row[0]])
    session.close()
    return str(row[0])

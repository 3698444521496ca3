"""The service with its face: the loops, the probe of both engines, the watch, the HTTP interface, signals, systemd.

Guarantees: nothing starts unless the database and the address are ours; a stop lets requests finish, then the loops,
then closes the file; a configuration that cannot be read again leaves everything as it was.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import structlog
from attrs import define, evolve, field

from replicator import systemd
from replicator.config import Settings
from replicator.errors import ConfigError
from replicator.meters import MeasuredLog, MeasuredSink, Metrics, resource
from replicator.operations import Operations
from replicator.page_feed import PageFeed
from replicator.server import HttpServer
from replicator.server_tokens import Tokens, ensure_tokens
from replicator.service import STOP_SECONDS, Service, build_sink
from replicator.service_job import Jobs
from replicator.service_snapshot import Snapshots
from replicator.service_verify import Verification
from replicator.status_live import Watch
from replicator.status_probe import Probe
from replicator.telemetry import set_level

if TYPE_CHECKING:
    from replicator.tracing import Tracing

PARTS = (
    "replicator.server_query",
    "replicator.server_page",
    "replicator.server_verify",
    "replicator.server_past",
    "replicator.server_snapshot",
    "replicator.server_replay",
    "replicator.server_doctor",
    "replicator.server_rebuild",
)
"""Modules that add to the HTTP interface: ``make_router(running, doors)`` returns an APIRouter. Mounted where present."""
ATTEND_SECONDS = 0.5
EXPORT_SECONDS_MIN, EXPORT_SECONDS_MAX = 1.0, 4.0
PROBE_TIMEOUT_SECONDS = 20.0

log = structlog.get_logger(__name__)


@define
class RunningService:
    """Build it, then `run` it in the main thread."""

    settings: Settings
    reread: Callable[[], Settings]
    service: Service
    probe: Probe
    watch: Watch
    http: HttpServer
    operations: Operations
    tokens: Tokens
    verification: Verification
    snapshots: Snapshots
    metrics: Metrics | None = None
    tracing: Tracing | None = None
    feed: PageFeed = field(init=False)
    _signals: set[int] = field(factory=set)
    _notified_at: float = 0.0
    _state_line: str = ""

    def __attrs_post_init__(self) -> None:
        self.feed = PageFeed(running=self)

    @classmethod
    def build(cls, settings: Settings, reread: Callable[[], Settings]) -> RunningService:
        """Everything, with the database opened and the address taken. Raises what either raises."""
        service = Service.build(settings)
        try:
            tokens = ensure_tokens(settings)
            running = cls._around(settings, reread, service, tokens)
            running.metrics = running._measured()
            running.tracing = running._traced()
            running.http.bind()
        except BaseException:
            service.shut_down()
            raise
        return running

    @classmethod
    def _around(
        cls, settings: Settings, reread: Callable[[], Settings], service: Service, tokens: Tokens
    ) -> RunningService:
        sink = build_sink(settings)
        sink.options = evolve(sink.options, insert_timeout_seconds=PROBE_TIMEOUT_SECONDS)
        probe = Probe(
            pipeline=settings.pipeline.name,
            source=service.source,
            sink=sink,
            streams=lambda: service.catalog.routes.streams,
            stop=service.stop,
        )
        operations = Operations(
            database=service.database,
            controls=service.controls,
            ledger=service.ledger,
            deliver=service.deliver,
            tables=lambda: list(service.catalog.current),
            capture=service.capture,
        )
        jobs = Jobs(database=service.database, stop=service.stop, pins=service.changelog.pins)
        return cls(
            settings=settings,
            reread=reread,
            service=service,
            probe=probe,
            watch=Watch(service=service, probe=probe, stop=service.stop),
            http=HttpServer(settings=settings, instance_id=service.instance_id),
            operations=operations,
            tokens=tokens,
            verification=Verification(service=service, jobs=jobs),
            snapshots=Snapshots(service=service, jobs=jobs),
        )

    def _measured(self) -> Metrics | None:
        """The instruments, with deliver's inserts among them; None where nobody would read them."""
        telemetry = self.settings.telemetry
        if not (telemetry.prometheus or telemetry.otlp_endpoint):
            return None
        metrics = Metrics(
            latest=lambda: self.watch.recent,
            about=resource(self.settings.pipeline.name, self.service.instance_id),
            otlp_endpoint=telemetry.otlp_endpoint,
        )
        worker, capture = self.service.deliver.worker, self.service.capture
        worker.sink = MeasuredSink(worker.sink, metrics.taken)
        capture.changelog = MeasuredLog(capture.changelog, metrics.taken, self._group)  # type: ignore[assignment]
        return metrics

    @property
    def _group(self) -> str:
        return f"replicator:{self.settings.pipeline.name}"

    def _traced(self) -> Tracing | None:
        """The spans of each batch; None where nobody would read them."""
        endpoint = self.settings.telemetry.otlp_endpoint
        if not endpoint:
            return None
        from replicator.tracing import Tracing  # noqa: PLC0415 - where nobody reads spans nothing of it is loaded
        from replicator.tracing_steps import attach  # noqa: PLC0415

        about = resource(self.settings.pipeline.name, self.service.instance_id)
        tracing = Tracing.exporting(endpoint, about, self._group)
        attach(tracing, self.service)
        return tracing

    def application(self) -> object:
        """The HTTP application. Called in the server's thread."""
        from replicator.server_app import Face, build_app  # noqa: PLC0415 - the loops need not wait for FastAPI

        return build_app(
            Face(
                host=self.settings.serve.host,
                tokens=lambda: self.tokens,
                version=version("replicator"),
                instance_id=self.service.instance_id,
                pipeline=self.settings.pipeline.name,
                operations=self.operations,
                report=self.watch.report,
                latest=lambda: self.watch.recent,
                metrics=self.metrics.render if self.metrics and self.settings.telemetry.prometheus else None,
                parts=tuple(partial(import_module(name).make_router, self) for name in PARTS if find_spec(name)),
            )
        )

    # ── running ──

    def run(self) -> None:
        """Until a signal or a fatal error, which is raised."""
        service = self.service
        log.info("service_starting", pipeline=self.settings.pipeline.name, database=str(service.database.options.path))
        for warning in self.settings.warnings:
            log.warning("configuration_warning", text=warning)
        with self._listening():
            service.start()
            service.supervise("redis-probe", self.probe.run_redis)
            service.supervise("clickhouse-probe", self.probe.run_clickhouse)
            service.supervise("watch", self.watch.run)
            service.supervise("verify", self.verification.run_scheduled)
            service.supervise("page", self.feed.run)
            service.supervise("page-rows", self.feed.rows.run)
            service.supervise("snapshots", self.snapshots.run_scheduled)
            self.http.start(self.application)
            systemd.notify("READY=1")
            self._attend()
            systemd.notify("STOPPING=1")
            deadline = time.monotonic() + STOP_SECONDS
            self.http.stop()
            service.shut_down(deadline=deadline)
            self._stop_exporting(deadline)
        if service.fatal is not None:
            raise service.fatal

    def _stop_exporting(self, deadline: float) -> None:
        """A collector that does not answer keeps the process for a few seconds at most, and for one beyond the deadline."""
        closing = [
            threading.Thread(target=each.close, name="exporting-ends", daemon=True)
            for each in (self.tracing, self.metrics)
            if each is not None
        ]
        for thread in closing:
            thread.start()
        clock = time.monotonic()
        deadline = min(max(deadline, clock + EXPORT_SECONDS_MIN), clock + EXPORT_SECONDS_MAX)
        for thread in closing:
            thread.join(max(0.0, deadline - time.monotonic()))

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Signals only leave a note: acting inside a handler could deadlock with what it interrupts."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, lambda n, _: self._signals.add(n)) for number in numbers}
        try:
            yield
        finally:
            for number, action in before.items():
                signal.signal(number, action)

    def _attend(self) -> None:
        while not self.service.stop.wait(ATTEND_SECONDS):
            received, self._signals = self._signals, set()
            if signal.SIGHUP in received:
                self.reload()
            if received - {signal.SIGHUP}:
                log.info("service_stopping", signals=[signal.Signals(n).name for n in received])
                self.service.stop.set()
            self._tell_watchdog()
            self._tell_state()

    def _tell_watchdog(self) -> None:
        interval = systemd.watchdog_seconds()
        if interval is None or time.monotonic() - self._notified_at < interval:
            return
        report = self.watch.recent
        if report is None or not report.hangs:
            systemd.notify("WATCHDOG=1")
            self._notified_at = time.monotonic()

    def _tell_state(self) -> None:
        """The line that `systemctl status` shows."""
        report = self.watch.recent
        line = "starting" if report is None else "; ".join([str(report.state), *(r.text for r in report.reasons)])
        if line != self._state_line:
            self._state_line = line
            systemd.notify("STATUS=" + line.replace("\n", " "))

    # ── SIGHUP ──

    def reload(self) -> None:
        """Take tables, streams, log level, tokens and the ClickHouse login as they are configured now."""
        systemd.reloading()
        try:
            settings = self.reread()
            changed = self.service.reload(settings)
        except ConfigError as error:
            log.error("configuration_not_reloaded", problems=list(error.problems), hint=error.hint)
        else:
            set_level(settings.writer.logging.log_level)
            self.tokens = ensure_tokens(settings)
            self._renew_login(settings)
            log.info("configuration_taken", changed=changed)
        systemd.notify("READY=1")

    def _renew_login(self, settings: Settings) -> None:
        new = settings.clickhouse
        for sink in (self.service.sink, self.probe.sink):
            if (sink.options.user, sink.options.password) != (new.user, new.password):
                sink.options = evolve(sink.options, user=new.user, password=new.password)
                sink.close()

"""The whole service in a process of its own, asked over its HTTP interface: what soaks that look at it share."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from attrs import define, field
from pipeline_room import PipelineRoom

from ops.soak.report import Report
from replicator.client import connect
from replicator.config import load_settings
from replicator.errors import ReplicatorError
from replicator.running import RunningService

PATIENCE_SECONDS = 3_600
ASK_SECONDS = 0.5


def _serve(config: Path, environment: Mapping[str, str], settled_seconds: float | None) -> None:
    """The child. ``settled_seconds`` is when a delivery is settled, where that is not to take as long as it ships."""
    log = (config.parent / "service.log").open("a", buffering=1)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(log))
    running = RunningService.build(load_settings(config, environ=environment), lambda: load_settings(config))
    if settled_seconds is not None:
        running.service.keeping.retention.settled_seconds = settled_seconds
    running.run()


@define
class Serving:
    """The service of one room."""

    room: PipelineRoom
    report: Report
    settled_seconds: float | None = None
    pid: int = field(default=0, init=False)

    @contextmanager
    def up(self) -> Iterator[None]:
        """It runs inside the block, answers from its beginning on, and is stopped in order at the end."""
        config = self.room.directory / "config"
        spawn = multiprocessing.get_context("spawn")
        arguments = (config, self.room.environment, self.settled_seconds)
        service = spawn.Process(target=_serve, args=arguments, daemon=True)
        service.start()
        self.pid = service.pid or 0
        try:
            self.until(lambda status: status is not None, "the service is up")
            yield
            service.terminate()
            service.join(60)
            if service.exitcode:
                self.report.wrong.append(f"the service ended with exit code {service.exitcode}")
        finally:
            service.kill()

    def ask(self, ask: Callable[[Any], Any]) -> Any:
        client = connect(load_settings(self.room.directory / "config", environ=self.room.environment))
        assert client is not None
        return ask(client)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(lambda client: client.get("/api/v1/status"))
        return found

    def until(self, holds: Callable[[dict[str, Any]], bool], what: str) -> None:
        deadline, wait = time.monotonic() + PATIENCE_SECONDS, threading.Event()
        while time.monotonic() < deadline:
            try:
                if holds(self.status()):
                    return
            except (ReplicatorError, AssertionError):  # it is not up yet
                pass
            wait.wait(ASK_SECONDS)
        raise AssertionError(f"not within {PATIENCE_SECONDS} s: {what}")

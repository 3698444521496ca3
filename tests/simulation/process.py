"""One process of the service as it stands, between a simulated Redis and a simulated ClickHouse, on a simulated disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from attrs import define, evolve, field
from simulation.clickhouse_end import SimClickHouse
from simulation.disk import Disk
from simulation.kernel import Kernel, Process
from simulation.patches import adopt
from simulation.redis_end import SimRedis

from replicator import service as composition
from replicator import sink_ddl
from replicator.catalog import Catalog
from replicator.config import Settings, load_settings
from replicator.errors import DatabaseUnavailable
from replicator.log_columns import GENERIC, PIPELINE, SEND
from replicator.model import GENERIC_LANE
from replicator.service import Service
from replicator.sink import LEDGER, SCHEMAS

STREAMS = ("trades", "orders")
CONFIGURATION = {
    "replicator.toml": """
[redis]
streams = ["trades", "orders"]
[[tables]]
name = "orders"
stream = "orders"
key = ["k"]
[tables.columns]
k = "VARCHAR"
n = "BIGINT"
""",
    "duckdb_rust_config.toml": """
[sync]
batch_size = 4
sync_interval_sec = 0.05
max_retry_attempts = 2
[error_handling]
retry_backoff_sec = [0.2, 1]
""",
}


@cache
def settings() -> Settings:
    with tempfile.TemporaryDirectory() as directory:
        for name, text in CONFIGURATION.items():
            (Path(directory) / name).write_text(text)
        environment = {
            "DUCKDB_PATH": str(Path(directory) / "log.duckdb"),
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "CLICKHOUSE_ENDPOINT": "http://127.0.0.1:1",
        }
        return load_settings(Path(directory), environ=environment)


def declare(disk: Disk) -> Catalog:
    """Record the tables in the file, once for all the processes that will open it."""
    told = settings()
    return Catalog.open(disk.open(None), told.tables, told.redis.streams)


def columns_expected(catalog: Catalog) -> dict[str, dict[str, str]]:
    """What `system.columns` says of our tables."""
    found = {GENERIC_LANE: {c.name: c.clickhouse for c in (PIPELINE, *GENERIC, SEND)}, LEDGER: {}, SCHEMAS: {}}
    for schema in catalog.current.values():
        found[schema.log_name] = sink_ddl.expected_columns(schema)
        found[schema.state_name] = found[sink_ddl.feed_name(schema)] = sink_ddl.expected_state_columns(schema)
    return found


@define(eq=False)
class Running:
    """A process from its start to its end."""

    kernel: Kernel
    disk: Disk
    redis: SimRedis
    sink: SimClickHouse
    catalog: Catalog
    process: Process
    service: Service | None = None
    failed: BaseException | None = None
    _database: Any = field(default=None)

    @classmethod
    def start(cls, number: int, **parts: Any) -> Running:
        running = cls(process=Process(f"process {number}"), **parts)
        running.kernel.spawn("main", running._main, running.process)
        return running

    def _main(self) -> None:
        try:
            self._serve()
        except DatabaseUnavailable as error:  # the command ends with an error, and is run again
            self.kernel.note(str(error))
        self.process.dead = True

    def _serve(self) -> None:
        database = self.disk.open(self.process)
        with self._ends(database):
            service = Service.build(settings())
        adopt(service, self.kernel, self.process)
        self.service = service
        service.supervise("capture", service.capture_all)
        service.supervise("ownership", lambda: service.ownership.run(service.stop))
        service.supervise("deliver", service.deliver_all)
        service.supervise("reconcile", service.reconciler.watch)
        service.stop.wait()
        self.failed = service.fatal

    @contextmanager
    def _ends(self, database: Any) -> Iterator[None]:
        """The adapters that the composition root builds are the simulated ones; the tables are declared already."""
        source = self.redis.sim_source()
        ends: list[tuple[Any, str, Any]] = [
            (composition, "open_database", lambda _: database),
            (composition, "build_source", lambda _: source),
            (composition, "build_sink", lambda _: self.sink),
            (Catalog, "configured", lambda *_: self._known_tables(database)),
        ]
        before = [(owner, name, owner.__dict__[name]) for owner, name, _ in ends]
        try:
            for owner, name, value in ends:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)

    def _known_tables(self, database: Any) -> Catalog:
        return evolve(self.catalog, database=database, made=set())

    @property
    def alive(self) -> bool:
        return not self.process.dead

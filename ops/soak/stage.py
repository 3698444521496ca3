"""Where a soak plays: engines of its own in a directory of its own, and a fresh room in them for each cycle."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import redis
import structlog
from attrs import define, field
from pipeline_room import PipelineRoom
from storm_room import ORDERS

from replicator.embedded.stack import Stack


@define
class Stage:
    """Both engines. A soak that finds anything leaves its directory behind."""

    directory: Path
    stack: Stack
    rooms: int = 0
    keep: bool = False
    room: PipelineRoom = field(init=False)

    def fresh_room(self, *, redis_url: str = "", endpoint: str = "", **more: Any) -> PipelineRoom:
        """An empty Redis, an empty database, no log yet. The addresses may lead through proxies."""
        self.stack.start()
        self.rooms += 1
        name = f"soak_{self.rooms}"
        clickhouse = self.stack.clickhouse
        with redis.Redis.from_url(self.stack.redis.url) as client:
            client.flushall()
        if self.rooms > 1:
            clickhouse.execute(f"drop database soak_{self.rooms - 1} sync")
            shutil.rmtree(self.directory / f"soak_{self.rooms - 1}")
        clickhouse.execute(f"create database {name}")
        self.room = PipelineRoom(
            directory=self.directory / name,
            redis_url=redis_url or self.stack.redis.url,
            producers_redis_url=self.stack.redis.url,
            clickhouse=clickhouse,
            database=name,
            endpoint=endpoint or clickhouse.endpoint,
            streams=("trades", "orders"),
            tables=ORDERS,
            **more,
        )
        return self.room

    def engines(self) -> dict[str, str]:
        """What ran, for the record."""
        with redis.Redis.from_url(self.stack.redis.url) as client:
            facts = client.info("server")
        return {
            "redis": f"Valkey {facts['valkey_version']}" if "valkey_version" in facts else facts["redis_version"],
            "clickhouse": self.stack.clickhouse.execute("select version()").strip(),
            "duckdb": duckdb.__version__,
            "python": platform.python_version(),
            "cores": str(os.cpu_count()),
        }


@contextmanager
def stage() -> Iterator[Stage]:
    """Engines up, and everything gone at the end, unless there is something to look at."""
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    with (directory / "settling.log").open("a", buffering=1) as log, _stack(directory) as stack:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(log))
        set_up = Stage(directory=directory, stack=stack)
        yield set_up
    if not set_up.keep:
        shutil.rmtree(directory)


def _stack(directory: Path) -> Stack:
    """With ``everysec``, Valkey killed under load can lose what it acknowledged: seen once, on a disk that was busy."""
    return Stack(directory=directory / "engines", fsync="always")

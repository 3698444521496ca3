"""A whole service in this process, with tables of its own: what a producer sends, and what both sides then hold."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from attrs import define, field
from replicator_process import until

from replicator.config import load_settings
from replicator.database import Session
from replicator.embedded.clickhouse import ClickHouse
from replicator.service import Service
from replicator.state import fold
from replicator.verify import Verifier, VerifyReport, VerifyRequest

WRITER = """
[database]
path = "{path}"
[sync]
sync_interval_sec = 0.05
max_retry_attempts = 2
[error_handling]
retry_backoff_sec = [0.1, 0.2]
"""


@define
class TablesRoom:
    """A running service. ``tables`` is the TOML of its ``[[tables]]``."""

    directory: Path
    environ: Mapping[str, str]
    database: str
    redis: redis.Redis
    service: Service = field(init=False)
    session: Session = field(init=False)
    _thread: threading.Thread = field(init=False)

    @classmethod
    @contextmanager
    def open(
        cls, directory: Path, redis_url: str, server: ClickHouse, database: str, tables: str
    ) -> Iterator[TablesRoom]:
        environ = {"REDIS_URL": redis_url, "CLICKHOUSE_ENDPOINT": server.endpoint}
        environ |= {"CLICKHOUSE_USER": server.user, "CLICKHOUSE_PASSWORD": server.password}
        with redis.Redis.from_url(redis_url) as client:
            room = cls(directory=directory, environ=environ, database=database, redis=client)
            room.declare(tables)
            room.start()
            try:
                yield room
            finally:
                room.stop()

    def declare(self, tables: str) -> None:
        """Write the configuration; nothing is told of it."""
        config = self.directory / "config"
        config.mkdir(parents=True, exist_ok=True)
        text = f'[clickhouse]\ndatabase = "{self.database}"\n{tables}'
        (config / "replicator.toml").write_text(text)
        (config / "duckdb_rust_config.toml").write_text(WRITER.format(path=self.directory / "log.duckdb"))

    def start(self) -> None:
        self.service = Service.build(load_settings(self.directory / "config", environ=self.environ))
        self.session = self.service.database.session()
        self._thread = threading.Thread(target=self.service.run, name="service")
        self._thread.start()
        names = list(self.service.catalog.current)
        until(lambda: all(self.service.sink.columns(name) for name in names), "the tables are in ClickHouse")

    def stop(self) -> None:
        """In order, as SIGTERM does."""
        self.service.stop.set()
        self._thread.join()

    def reload(self, tables: str) -> list[str]:
        """What SIGHUP does with an edited configuration."""
        self.declare(tables)
        return self.service.reload(load_settings(self.directory / "config", environ=self.environ))

    # ── producing ──

    def put(self, stream: str, rows: Sequence[Mapping[str, Any]], **controls: str) -> None:
        """One json entry per row."""
        pipe = self.redis.pipeline(transaction=False)
        for row in rows:
            pipe.xadd(stream, {"data": json.dumps(row), **controls})
        pipe.execute()

    def wait_logged(self) -> int:
        """Until capture has read all that Redis holds; returns the head."""

        def read() -> bool:
            streams = self.service.catalog.routes.streams
            positions = self.service.progress.positions
            ends = {
                s: self.redis.xinfo_stream(s)["last-generated-id"].decode() for s in streams if self.redis.exists(s)
            }
            return all(s in positions and positions[s].last_entry_id == end for s, end in ends.items())

        until(read, "all entries are read")
        return self.service.changelog.head

    def wait_delivered(self, *, lanes: Sequence[str] = ()) -> int:
        """Until all of it is in ClickHouse (or all of these lanes); returns the head."""
        head = self.wait_logged()
        deliver = self.service.deliver

        def delivered() -> bool:
            if lanes:
                return all(name in deliver.lanes and deliver.lanes[name].checkpoint >= head for name in lanes)
            return deliver.checkpoint >= head

        until(delivered, f"everything up to {head} in ClickHouse")
        return head

    def settle(self) -> int:
        """All delivered, and nothing rejected or parked on the way."""
        head = self.wait_delivered()
        assert self.rejections() == []
        assert self.session.rows("select * from failed_syncs") == []
        return head

    def fold(self, table: str) -> None:
        """What upkeep does when its time has come."""
        session = self.service.database.session()
        fold(session, self.service.catalog.current[table], self.service.changelog.head)
        session.close()

    # ── both sides ──

    def rejections(self) -> list[str]:
        return [reason for (reason,) in self.session.rows("select reason from rejected_entries order by id")]

    def duckdb(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.session.rows(sql)]

    def clickhouse(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.service.sink.rows(sql)]

    def command(self, sql: str) -> None:
        """Someone else's statement in ClickHouse."""
        self.service.sink.command(sql)

    def both(self, sql: str) -> list[tuple[Any, ...]]:
        """The answer, which must be the same on both sides."""
        ours, theirs = self.duckdb(sql), self.clickhouse(sql)
        assert ours == theirs
        return ours

    def verify(self) -> VerifyReport:
        session = self.service.database.session()
        catalog = self.service.catalog
        report = Verifier(session=session, sink=self.service.sink, catalog=catalog, pipeline="main").verify(
            VerifyRequest()
        )
        session.close()
        return report

    def assert_verified(self) -> None:
        """Equal value by value and key by key, in T_log and in T."""
        report = self.verify()
        assert report.mismatches == 0, report

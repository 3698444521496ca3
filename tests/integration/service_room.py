"""The whole service in this process, between a real Redis and a real ClickHouse, with a file that tests may turn back."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis
from attrs import define, field
from capture_room import PATIENCE_SECONDS, wait_until

from replicator.config import load_settings
from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import ReplicatorError
from replicator.service import Service
from replicator.sink import ClickHouseSink


@define(kw_only=True)
class ServiceRoom:
    """``tables`` and ``sections`` are TOML. The sink can be asked whether the service runs or not."""

    directory: Path
    redis_url: str
    server: ClickHouse
    database: str
    tables: str = ""
    sections: str = ""
    redis: str = ""
    """Further keys of its section."""
    service: Service = field(init=False)
    sink: ClickHouseSink = field(init=False)
    client: redis.Redis = field(init=False)
    failed: ReplicatorError | None = None
    _thread: threading.Thread | None = None

    def __attrs_post_init__(self) -> None:
        config = self.directory / "config"
        config.mkdir(parents=True)
        streams = "" if self.tables else 'streams = ["trades"]'
        text = f'[redis]\n{streams}\n{self.redis}\n[clickhouse]\ndatabase = "{self.database}"\nconnect_timeout_sec = 1\n{self.sections}\n{self.tables}\n'
        (config / "replicator.toml").write_text(text)
        sync = "[sync]\nsync_interval_sec = 0.05\n[error_handling]\nretry_backoff_sec = [0.2]\n"
        (config / "duckdb_rust_config.toml").write_text(sync)
        self.client = redis.Redis.from_url(self.redis_url)

    @property
    def path(self) -> Path:
        return self.directory / "log.duckdb"

    def environment(self) -> Mapping[str, str]:
        return {
            "REDIS_URL": self.redis_url,
            "DUCKDB_PATH": str(self.path),
            "CLICKHOUSE_ENDPOINT": self.server.endpoint,
            "CLICKHOUSE_USER": self.server.user,
            "CLICKHOUSE_PASSWORD": self.server.password,
        }

    def start(self) -> ServiceRoom:
        self.failed = None
        self.service = Service.build(load_settings(self.directory / "config", environ=self.environment()))
        self.service.reconciler.poll_seconds, self.service.reconciler.compare_seconds = 0.2, 0.5
        self.sink = self.service.sink
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        try:
            self.service.run()
        except ReplicatorError as error:
            self.failed = error

    def stop(self) -> None:
        if self._thread is not None:
            self.service.stop.set()
            self._thread.join(PATIENCE_SECONDS)
            assert not self._thread.is_alive()
            self._thread = None

    def wait_failed(self) -> ReplicatorError:
        found = wait_until(lambda: self.failed, "the service ends by itself")
        self.stop()
        return found

    # ── the file, while the service is stopped ──

    def copy(self, name: str = "kept") -> Path:
        """A copy of the file and its WAL, made by another process: so it may be made while the service runs."""
        (self.directory / name).mkdir(exist_ok=True)
        self._duplicate(self.directory, self.directory / name)
        return self.directory / name / self.path.name

    def turn_back(self, name: str = "kept") -> None:
        """The copy of that name takes the file's place."""
        self._duplicate(self.directory / name, self.directory)

    def _duplicate(self, source: Path, target: Path) -> None:
        for name in (self.path.name, f"{self.path.name}.wal"):
            (target / name).unlink(missing_ok=True)
            if (source / name).exists():
                subprocess.run(["cp", str(source / name), str(target / name)], check=True)

    # ── both ends ──

    def add(self, first: int, last: int, **more: str) -> None:
        pipe = self.client.pipeline(transaction=False)
        for n in range(first, last + 1):
            pipe.xadd(
                "trades",
                {"data": f'{{"trade_id":"T{n}","n":{n}}}', **({} if self.tables else {"key": f"T{n}"}), **more},
            )
        pipe.execute()

    def wait_logged(self, head: int) -> None:
        self._wait(lambda: self.service.changelog.head >= head, f"the log's head at {head}")

    def wait_delivered(self, head: int) -> None:
        self.wait_logged(head)
        self._wait(lambda: self.service.deliver.checkpoint >= head, f"the checkpoint at {head}")

    def _wait(self, condition: Any, what: str) -> None:
        wait_until(lambda: condition() or self.failed, what)
        assert self.failed is None, self.failed

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        session = self.service.database.session()
        try:
            return session.rows(sql)
        finally:
            session.close()

    def asked(self, sql: str) -> list[tuple[Any, ...]]:
        """What ClickHouse answers; ``{d}`` is this database."""
        return [tuple(line.split("\t")) for line in self.server.execute(sql.replace("{d}", self.database)).splitlines()]

    @property
    def logged(self) -> Sequence[int]:
        """The numbers in the payloads, in the order of the log."""
        return [
            n for (n,) in self.rows("select (payload->>'n')::int from change_log where op <> 'v' order by log_offset")
        ]

    @property
    def target(self) -> str:
        return "trades_log" if self.tables else "change_log"

    @property
    def held(self) -> Sequence[int]:
        """The numbers that ClickHouse holds, each offset once."""
        payload = "_payload" if self.tables else "payload"
        sql = f"select JSONExtractInt(assumeNotNull({payload}), 'n') as n from {{d}}.{self.target} final order by n"
        try:
            return [int(n) for (n,) in self.asked(sql)]
        except ReplicatorError as error:
            if "UNKNOWN" in str(error):  # dropped, and not made again yet
                return []
            raise

    @property
    def physical(self) -> int:
        return int(self.asked(f"select count() from {{d}}.{self.target}")[0][0])

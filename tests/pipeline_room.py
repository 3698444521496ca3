"""The service over real engines, in this process or in one that may be killed, and what must hold afterwards."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import redis
import structlog
from attrs import define, field
from contract.fakes import wait_until

from replicator import failpoints
from replicator.config import Settings, load_settings
from replicator.database import Database, DatabaseOptions, Session
from replicator.embedded.clickhouse import ClickHouse
from replicator.service import Service

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["replicator.service", "pipeline_room"])


def _serve(directory: Path, environment: dict[str, str], armed: str) -> None:
    """The child: the service until it is killed or told to stop."""
    log = (directory / "child.log").open("a", buffering=1)
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(log),
    )
    failpoints.arm(armed)
    Service.build(load_settings(directory / "config", environ=environment)).run()


@define
class PipelineRoom:
    """``redis_url`` and ``endpoint`` may lead through proxies; what is checked is asked of the engines themselves."""

    directory: Path
    redis_url: str
    clickhouse: ClickHouse
    database: str
    endpoint: str
    streams: tuple[str, ...] = ("trades",)
    tables: str = ""
    sync: str = "sync_interval_sec = 0.05\nmax_retry_attempts = 3"
    ladder: str = "retry_backoff_sec = [0.05, 0.1]"
    batch_size: int = 1000
    serve: str = ""
    clickhouse_keys: str = "connect_timeout_sec = 2"
    source: redis.Redis = field(init=False)
    producers_redis_url: str = ""
    added: int = 0

    def __attrs_post_init__(self) -> None:
        self.source = redis.Redis.from_url(self.producers_redis_url or self.redis_url)
        self.configure()

    def configure(self, *, sync: str = "") -> None:
        """Write the two files that matter."""
        self.sync = sync or self.sync
        config = self.directory / "config"
        config.mkdir(parents=True, exist_ok=True)
        (config / "replicator.toml").write_text(
            f"[redis]\nstreams = {json.dumps(self.streams)}\n[clickhouse]\ndatabase = {json.dumps(self.database)}\n"
            f"{self.clickhouse_keys}\n[serve]\n{self.serve}\n{self.tables}\n"
        )
        (config / "duckdb_rust_config.toml").write_text(
            f"[sync]\nbatch_size = {self.batch_size}\n{self.sync}\n[error_handling]\n{self.ladder}\n"
        )

    @property
    def environment(self) -> dict[str, str]:
        return {
            "REDIS_URL": self.redis_url,
            "CLICKHOUSE_ENDPOINT": self.endpoint,
            "CLICKHOUSE_USER": self.clickhouse.user,
            "CLICKHOUSE_PASSWORD": self.clickhouse.password,
            "DUCKDB_PATH": str(self.path),
        }

    @property
    def path(self) -> Path:
        return self.directory / "log.duckdb"

    # ── running it ──

    @contextmanager
    def running(self) -> Iterator[Service]:
        """The service in threads of this process, stopped in order at the end."""
        settings: Settings = load_settings(self.directory / "config", environ=self.environment)
        service = Service.build(settings)
        thread = threading.Thread(target=service.run, daemon=True)
        thread.start()
        try:
            yield service
        finally:
            service.stop.set()
            thread.join(20)
        assert not thread.is_alive()

    def child(self, armed: str = "") -> BaseProcess:
        """The service in a process of its own, with failpoints armed."""
        process = _forks.Process(target=_serve, args=(self.directory, self.environment, armed), daemon=True)
        process.start()
        return process

    @property
    def child_log(self) -> str:
        """What the children have logged so far."""
        path = self.directory / "child.log"
        return path.read_text() if path.exists() else ""

    def add(self, count: int, stream: str = "trades", mark: str = "") -> None:
        """Put changes into a stream."""
        pipe = self.source.pipeline(transaction=False)
        for n in range(self.added, self.added + count):
            pipe.xadd(stream, {"data": json.dumps({"n": n, "mark": mark})})
        pipe.execute()
        self.added += count

    # ── what must hold ──

    @contextmanager
    def file(self) -> Iterator[Session]:
        """The log's file, while no service has it."""
        database = Database.open(DatabaseOptions(path=self.path))
        try:
            yield database.session()
        finally:
            database.close()

    def sink_rows(self, sql: str) -> list[list[Any]]:
        text = self.clickhouse.execute(f"{sql.format(db=self.database)} format JSONCompactEachRow")
        return [json.loads(line) for line in text.splitlines()]

    def physical(self, table: str = "change_log", offset: str = "log_offset") -> list[int]:
        """The offsets of all rows, without FINAL."""
        return [int(row[0]) for row in self.sink_rows(f"select {offset} from {{db}}.{table} order by 1")]

    def check_promise_three(self, session: Session) -> None:
        """Every offset at or below a checkpoint is in the sink, or in an open or discarded row of failed_syncs."""
        checkpoints = dict(session.rows("select table_name, log_offset from checkpoints"))
        for lane, checkpoint in checkpoints.items():
            generic = lane == "change_log"
            table, column = (lane, "log_offset") if generic else (f"{lane}_log", "_offset")
            where = "schema_version = 0" if generic else f"table_name = '{lane}' and schema_version > 0"
            due = session.rows(
                f"select log_offset from change_log c where {where} and log_offset <= ? and not exists (select 1 from "
                f"failed_syncs f where f.table_name = ? and status in ('open', 'discarded') and log_offset between "
                "first_offset and last_offset)",
                [checkpoint, lane],
            )
            missing = {offset for (offset,) in due} - set(self.physical(table, column))
            assert not missing, f"{lane}: checkpoint {checkpoint} has passed {sorted(missing)[:5]}"

    def check_log(self, session: Session, stream: str = "trades") -> None:
        """The log holds each entry of the stream once, in order, at offsets without gaps."""
        entries = [(id_.decode(), fields[b"data"].decode()) for id_, fields in self.source.xrange(stream)]
        logged = session.rows("select entry_id, payload from change_log where stream = ? order by log_offset", [stream])
        assert logged == entries
        offsets = [offset for (offset,) in session.rows("select log_offset from change_log order by 1")]
        assert offsets == list(range(1, len(offsets) + 1))

    def check_sink(self, session: Session, parked: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """The sink holds each logged change once, physically too, equal by content; its ledger is whole."""
        log = session.rows(
            "select log_offset, version, entry_id, payload from change_log where schema_version = 0 order by 1"
        )
        held = self.sink_rows("select log_offset, version, entry_id, payload from {db}.change_log order by log_offset")
        assert [(int(o), int(v), e, p) for o, v, e, p in held] == [row for row in log if row[0] not in parked]
        end = 0
        ranges = "select distinct first_offset, last_offset from {db}.replicator_batches final where table_name = 'change_log' order by 1"
        for first, last in self.sink_rows(ranges):
            assert int(first) == end + 1
            end = int(last)
        assert end >= max((row[0] for row in log), default=0)

    def wait_delivered(self, service: Service, seconds: float = 30.0) -> None:
        """All that is in the streams is logged and in the sink, nothing in doubt."""
        total = sum(self.source.xlen(stream) for stream in self.streams)
        wait_until(lambda: service.changelog.head >= total, seconds)
        self.wait_settled(service, seconds)

    def wait_settled(self, service: Service, seconds: float = 30.0) -> None:
        """All that is logged is in the sink, nothing in doubt."""
        wait_until(
            lambda: (
                service.deliver.lanes
                and service.deliver.checkpoint >= service.changelog.head
                and service.deliver.quiet
                and not any(state.redrives for state in service.deliver.lanes.values())
            ),
            seconds,
        )

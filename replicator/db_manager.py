"""``DuckDBManager``: how a program in Python reads the log and the current rows while the service writes.

Given a profile it finds its way by itself: the running service, else the file, else (to read) the newest snapshot.
Guarantees: whatever way it takes, the same question has the same answer in Python's own types; any thread may ask;
tables that the replicator keeps are never changed by SQL. Not for use inside the service's own process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from attrs import evolve

from replicator.config import load_profile, load_settings
from replicator.db_manager_connection import Answer, Connection
from replicator.db_manager_sync import SyncReport, actor, ask_service, report_of, sync_along_ladder, waits_of
from replicator.db_manager_ways import ReadFrom, Ways
from replicator.errors import SinkUnavailable
from replicator.query_question import ROWS_MAX, SECONDS_DEFAULT, Question
from replicator.query_rows import python_rows
from replicator.telemetry import LogOptions, join_log_file

Parameters = Sequence[Any] | Mapping[str, Any] | None


class DuckDBManager:
    """``config_path`` names a profile: ``duckdb_python_config.toml`` reads, ``duckdb_rust_config.toml`` also writes.

    The read-write profile owns the file while no service does, and may keep tables of its own in it.
    """

    def __init__(self, config_path: str | Path) -> None:
        path = Path(config_path)
        self._profile = load_profile(path)
        self.config = self._profile.as_dict()
        self.config["sync"]["backup_interval_sec"] = self.config["sync"]["sync_interval_sec"]  # its name in that file
        self.db_path: str = self.config["database"]["path"]
        settings = load_settings(path.absolute().parent)
        self._settings = evolve(settings, writer=evolve(settings.writer, database=self._profile.database))
        self._leave_log = join_log_file(self._log_options())
        self._ways = Ways(settings=self._settings, profile=self._profile)
        self.conn = Connection(self.query_arrow, self.close)
        try:
            if not self.read_only:
                self._ways.own()
        except BaseException:
            self._leave_log()
            raise

    def _log_options(self) -> LogOptions:
        logging, s = self._profile.logging, self._settings
        secrets = (s.redis.password, s.clickhouse.password, s.serve.admin_token, s.serve.read_token)
        return LogOptions(level=logging.log_level, path=logging.log_path, secrets=[text for text in secrets if text])

    @property
    def read_only(self) -> bool:
        return self._profile.database.read_only

    @property
    def reads_from(self) -> ReadFrom | None:
        """Which way the last answer came, and how old that is; None before the first."""
        return self._ways.taken

    # ── asking ──

    def execute_query(self, query: str, parameters: Parameters = None, **limits: Any) -> list[tuple[Any, ...]]:
        """The rows, as DuckDB's ``fetchall`` gives them. ``limits`` are those of `query_arrow`."""
        return python_rows(self.query_arrow(query, parameters, **limits))

    def query_arrow(
        self,
        query: str,
        parameters: Parameters = None,
        *,
        timeout_seconds: float = SECONDS_DEFAULT,
        max_rows: int = ROWS_MAX,
        min_entry_id: tuple[str, str] | None = None,
        wait_seconds: float = 10.0,
    ) -> pa.Table:
        """The answer as an Arrow table; each field's metadata has its DuckDB type.

        ``min_entry_id``, a stream and what XADD returned, waits until that entry is in the log: read what you wrote.
        Raises UsageError (QueryFailed, QueryRefused) for the query, DatabaseUnavailable where nothing can be asked.
        """
        return self._ways.ask(
            Question(
                sql=query,
                parameters=parameters,
                seconds=timeout_seconds,
                rows_max=max_rows,
                min_entry_id=min_entry_id,
                wait_seconds=wait_seconds,
            )
        )

    def query_df(self, query: str, parameters: Parameters = None, **limits: Any) -> Any:
        """The answer as a pandas DataFrame, where pandas is installed; decimals stay Decimal, integers integers."""
        return Answer(self.query_arrow(query, parameters, **limits)).df()

    # ── delivering ──

    def sync_to_clickhouse(self) -> SyncReport:
        """Have everything that is logged delivered now; waits along this profile's ladder and returns a report.

        A running service does it. Without one the read-write manager delivers by itself, once; the read-only one
        raises SinkUnavailable.
        """
        client = self._ways.service() if self.read_only else self._ways.own()
        if client is not None:
            return sync_along_ladder(self._profile, lambda seconds, rows: ask_service(client, seconds, rows))
        if self.read_only:
            raise SinkUnavailable(
                f"no service runs on {self.db_path}, and the read-only profile delivers nothing by itself",
                hint="start it with `replicator run`, or use the read-write profile",
            )
        with self._ways.let_go():
            report = self._deliver()
        self._ways.own()
        return report

    def _deliver(self) -> SyncReport:
        from replicator.service_alone import sync_once  # noqa: PLC0415 - loads the whole service

        started, seconds = time.monotonic(), sum(waits_of(self._profile)) or SECONDS_DEFAULT
        rows = self._profile.sync.batch_size
        found = sync_once(self._settings, actor=actor(), timeout_seconds=seconds, batch_rows_max=rows)
        return report_of(found, started, looks=1, through="file")

    # ── the end ──

    def close(self) -> None:
        """Give the file back. Closing twice is no error."""
        self._ways.close()
        self._leave_log()
        self._leave_log = lambda: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

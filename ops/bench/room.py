"""Where a case runs: the engines' addresses, its own directory, pipeline and ClickHouse database."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
from attrs import asdict, field, frozen

from ops.bench.meter import Sample
from ops.bench.workload import COLUMNS
from replicator.config import Settings, load_settings
from replicator.embedded.stack import Stack

ROOT = Path(__file__).resolve().parents[2]


@frozen(kw_only=True)
class Room:
    """``name`` is unique to a run, so that no run sees another's group, owner, tables or log."""

    name: str
    case: str
    directory: Path = field(converter=Path)
    redis_url: str
    endpoint: str
    user: str
    password: str
    servers: Mapping[str, int]
    stream: str = "trades"
    table: str = "trades"
    encoding: str = "json"
    typed: bool = False
    rows: int = 200_000
    batch_rows: int = 100_000
    cache_mb: int = 256
    interval_seconds: float = 1.0
    """How long a change may wait for its batch."""
    span_seconds: float = 30.0
    """How long a case lasts that runs for a time, not for a number of changes."""
    log_template: str = ""
    """A log that holds the changes already, for cases that begin there."""

    @property
    def database_path(self) -> Path:
        return self.directory / "log.duckdb"

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "directory": str(self.directory)}

    def settings(self) -> Settings:
        """The service's settings, by way of real configuration files."""
        config = self.directory / "config"
        config.mkdir(parents=True, exist_ok=True)
        (config / "replicator.toml").write_text(self._pipeline_toml())
        (config / "duckdb_rust_config.toml").write_text(self._profile_toml())
        return load_settings(config, environ=self.environ())

    def environ(self) -> dict[str, str]:
        """How the service finds the engines."""
        return {
            "REDIS_URL": self.redis_url,
            "CLICKHOUSE_USER": self.user,
            "CLICKHOUSE_PASSWORD": self.password,
        }

    def _pipeline_toml(self) -> str:
        text = (
            f'[pipeline]\nname = "{self.name}"\n'
            f'[redis]\nstreams = ["{self.stream}"]\n'
            f'[clickhouse]\ndatabase = "{self.name}"\n'
            "[serve]\nport = 0\n"
        )
        if self.typed:
            columns = "\n".join(f'{name} = "{kind}"' for name, kind in COLUMNS.items())
            text += f'[[tables]]\nname = "{self.table}"\nstream = "{self.stream}"\nkey = ["trade_id"]\n[tables.columns]\n{columns}\n'
        return text

    def _profile_toml(self) -> str:
        return (
            f'[database]\npath = "{self.database_path}"\nread_only = false\n'
            f"[performance]\nmax_threads = 2\ncache_size_mb = {self.cache_mb}\n"
            f'[logging]\nlog_level = "WARN"\nlog_path = ""\n'
            f'[sync]\nclickhouse_endpoint = "{self.endpoint}"\nbatch_size = {self.batch_rows}\nsync_interval_sec = {self.interval_seconds}\n'
        )


def template(stack: Stack, directory: Path) -> Room:
    """A room beside these engines, for cases to be made from."""
    ends = stack.endpoints
    return Room(
        name="template",
        case="capture",
        directory=directory / "template",
        redis_url=ends.redis_url,
        endpoint=ends.clickhouse_endpoint,
        user=ends.user,
        password=ends.password,
        servers={"redis": stack.redis.pid, "clickhouse": stack.clickhouse.pid},
    )


def measure(room: Room) -> Sample:
    """Run the room's case in a fresh process, so that memory is its own and nothing is warm that would not be."""
    result = room.directory.with_suffix(".json")
    command = [sys.executable, "-m", "ops.bench.case", json.dumps(room.as_dict()), str(result)]
    finished = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if finished.returncode:
        raise click.ClickException(f"{room.name} failed:\n{finished.stderr[-3000:]}")
    return Sample(**json.loads(result.read_text()))

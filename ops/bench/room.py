"""Where a case runs: the engines' addresses, its own directory, pipeline and ClickHouse database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import asdict, field, frozen

from ops.bench.workload import COLUMNS
from replicator.config import Settings, load_settings


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
    encoding: str = "json"
    typed: bool = False
    rows: int = 200_000
    batch_rows: int = 100_000
    cache_mb: int = 256
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
        environ = {
            "REDIS_URL": self.redis_url,
            "CLICKHOUSE_USER": self.user,
            "CLICKHOUSE_PASSWORD": self.password,
        }
        return load_settings(config, environ=environ)

    def _pipeline_toml(self) -> str:
        text = (
            f'[pipeline]\nname = "{self.name}"\n'
            f'[redis]\nstreams = ["{self.stream}"]\n'
            f'[clickhouse]\ndatabase = "{self.name}"\n'
            "[serve]\nport = 0\n"
        )
        if self.typed:
            columns = "\n".join(f'{name} = "{kind}"' for name, kind in COLUMNS.items())
            text += f'[[tables]]\nname = "{self.stream}"\nkey = ["trade_id"]\n[tables.columns]\n{columns}\n'
        return text

    def _profile_toml(self) -> str:
        return (
            f'[database]\npath = "{self.database_path}"\nread_only = false\n'
            f"[performance]\nmax_threads = 2\ncache_size_mb = {self.cache_mb}\n"
            f'[logging]\nlog_level = "WARN"\nlog_path = ""\n'
            f'[sync]\nclickhouse_endpoint = "{self.endpoint}"\nbatch_size = {self.batch_rows}\nsync_interval_sec = 1\n'
        )

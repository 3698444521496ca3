"""A configuration directory to break: written file by file, loaded under an environment of its own.

Also the reference document's four files, letter for letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from attrs import frozen

from replicator.config import Settings, load_settings
from replicator.errors import ConfigError

REFERENCE_RUST = """\
[database]
path = "C:/TradeSystem/Data/trade_data.duckdb"   # Absolute path for DuckDB file
read_only = false                                 # Rust requires write capabilities

[performance]
max_threads = 4                                   # Controls parallelism (adjust for CPU cores)
cache_size_mb = 256                               # Cache size for faster queries
temp_directory = "C:/TradeSystem/Temp"            # Temp file location for large writes

[logging]
log_level = "INFO"                                # Available levels: TRACE, DEBUG, INFO, WARN, ERROR
log_path = "C:/TradeSystem/Logs/duckdb_rust.log"  # Dedicated log file for Rust-specific operations

[sync]
clickhouse_endpoint = "http://localhost:8123"     # CH endpoint for backup sync
backup_interval_sec = 600                         # Sync interval (10 mins)
max_retry_attempts = 5                            # Max retries before marking sync as failed

[error_handling]
failed_sync_table = "failed_syncs"                # Table for recording failed sync attempts
retry_backoff_sec = [5, 15, 30, 60]               # Adaptive retry strategy
"""

REFERENCE_PYTHON = """\
[database]
path = "C:/TradeSystem/Data/trade_data.duckdb"    # Same DuckDB file as Rust
read_only = true                                  # Python will only read data

[performance]
cache_size_mb = 128                               # Cache size for faster query performance

[logging]
log_level = "INFO"
log_path = "C:/TradeSystem/Logs/duckdb_python.log"

[sync]
clickhouse_endpoint = "http://localhost:8123"     # CH endpoint for backup sync
batch_size = 50                                    # Number of records per sync batch
sync_interval_sec = 300                            # Sync interval (5 mins)

[error_handling]
failed_sync_table = "failed_syncs"
retry_backoff_sec = [10, 30, 60, 120]             # Adaptive retry strategy for failed syncs
"""

REFERENCE_ENV = """\
# Environment Variables for DuckDB Managers
DUCKDB_PATH="C:/TradeSystem/Data/trade_data.duckdb"
CLICKHOUSE_ENDPOINT="http://localhost:8123"

# Log file locations
DUCKDB_RUST_LOG="C:/TradeSystem/Logs/duckdb_rust.log"
DUCKDB_PYTHON_LOG="C:/TradeSystem/Logs/duckdb_python.log"
"""

REFERENCE_SECRETS = """\
[auth]
clickhouse_user = "admin"
clickhouse_password = "your-secure-password"

[encryption]
master_key = "YOUR-ENCRYPTION-KEY-HERE"           # For future encryption needs
"""

RUST = "duckdb_rust_config.toml"
PYTHON = "duckdb_python_config.toml"
PIPELINE = "replicator.toml"
SECRETS = "secrets.toml"
TRADES = '[[tables]]\nname = "trades"\nkey = ["trade_id"]\n[tables.columns]\ntrade_id = "VARCHAR"\n'


@frozen
class Room:
    """``directory`` is ``<base>/config``; nothing of the real environment reaches it."""

    directory: Path

    @property
    def base(self) -> Path:
        return self.directory.parent

    def write(self, name: str, content: str | bytes, mode: int | None = None) -> Path:
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode or (0o600 if name == SECRETS else 0o644))
        return path

    def load(self, **environ: str) -> Settings:
        return load_settings(self.directory, environ=environ)

    def problems(self, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """What a load that must fail complains of."""
        with pytest.raises(ConfigError) as caught:
            load_settings(self.directory, environ=environ or {})
        return caught.value.problems

    def problem(self, environ: Mapping[str, str] | None = None) -> str:
        """The only problem of a load that must fail."""
        problems = self.problems(environ)
        assert len(problems) == 1, problems
        return problems[0]

    def problem_with(self, name: str, content: str) -> str:
        self.write(name, content)
        return self.problem()


def make_room(base: Path) -> Room:
    directory = base / "config"
    directory.mkdir()
    return Room(directory)

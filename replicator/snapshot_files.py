"""The files of snapshots: what they are called, how one is published, which of them go.

Guarantees: a name stands for a whole snapshot, never for one in the making; only files with a name of ours are ever
removed, and none that another process has open as a database. Never opens the live file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from attrs import define, frozen

from replicator.errors import DatabaseUnavailable

MAKING = ".making"
"""Beside the snapshots: where one is made before it gets its name."""
_TIME = r"(\d{8}T\d{6}\.\d{3})Z"


@frozen(kw_only=True)
class SnapshotFile:
    """A published snapshot."""

    path: Path
    taken_at: datetime
    bytes: int


@define
class SnapshotDirectory:
    """The snapshots of one pipeline in one directory."""

    path: Path
    pipeline: str

    @property
    def making(self) -> Path:
        return self.path / MAKING

    def prepare(self, at: datetime) -> Path:
        """Where to make the snapshot of that instant. What a killed process has left there goes."""
        try:
            for place in (self.path, self.making):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self.making.glob(f"{self.pipeline}@*"):
                left.unlink()
        except OSError as error:
            raise self._unusable(error) from error
        return self.making / f"{self.pipeline}@{at:%Y%m%dT%H%M%S}.duckdb"

    def publish(self, made: Path, at: datetime) -> SnapshotFile:
        """Give the finished file its name, durably. A directory with the setgid bit lets its group read it."""
        name = f"{self.pipeline}-{at:%Y%m%dT%H%M%S}.{at.microsecond // 1000:03d}Z.duckdb"
        try:
            shared = self.path.stat().st_mode & stat.S_ISGID
            made.chmod(0o640 if shared else 0o600)
            _sync(made)
            made.rename(self.path / name)
            _sync(self.path)
        except OSError as error:
            raise self._unusable(error) from error
        return SnapshotFile(path=self.path / name, taken_at=at, bytes=(self.path / name).stat().st_size)

    def published(self) -> list[SnapshotFile]:
        """All of them, the newest first."""
        return sorted(self._published(), key=lambda file: file.taken_at, reverse=True)

    def _published(self) -> Iterator[SnapshotFile]:
        pattern = re.compile(rf"{re.escape(self.pipeline)}-{_TIME}\.duckdb")
        try:
            entries = list(os.scandir(self.path))
        except OSError:
            return
        for entry in entries:
            named = pattern.fullmatch(entry.name)
            if named and entry.is_file(follow_symlinks=False):
                at = datetime.strptime(f"{named[1]}+0000", "%Y%m%dT%H%M%S.%f%z").astimezone(UTC)
                yield SnapshotFile(path=Path(entry.path), taken_at=at, bytes=entry.stat().st_size)

    def prune(self, keep: int) -> list[Path]:
        """Remove all but the newest so many. One that some process has open stays until a later call."""
        gone = []
        for file in self.published()[keep:]:
            if not _is_open(file.path):
                file.path.unlink(missing_ok=True)
                gone.append(file.path)
        return gone

    def _unusable(self, error: OSError) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"snapshots cannot be written to {self.path}: {error.strerror or error}",
            hint="see [snapshots] directory, its permissions and its disk",
        )


def _is_open(path: Path) -> bool:
    """Whether a process has it open as a database: DuckDB holds a lock on every file it reads."""
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN) or not isinstance(error, PermissionError)
    return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

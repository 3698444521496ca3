"""Migrations as files: which of a directory are still to be applied, and that none was edited. For both databases."""

from __future__ import annotations

import hashlib
from pathlib import Path

from replicator.errors import LogCorrupt


def migration_checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_migrations(directory: Path, applied: dict[str, str]) -> list[tuple[str, str]]:
    """The scripts in ``directory`` that are not in ``applied`` (name to checksum), in order.

    Raises LogCorrupt when an applied one was edited or has gone.
    """
    scripts = {path.name: path.read_text() for path in sorted(directory.glob("*.sql"))}
    for name, checksum in applied.items():
        if name not in scripts:
            raise LogCorrupt(
                f"migration {name} was applied but is not in {directory}",
                hint="this database was written by a newer release: run that release",
            )
        if migration_checksum(scripts[name]) != checksum:
            raise LogCorrupt(
                f"migration {directory / name} was edited after it was applied",
                hint="put the original back; a change of tables needs a new file",
            )
    return [(name, text) for name, text in scripts.items() if name not in applied]

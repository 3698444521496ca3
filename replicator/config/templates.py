"""The files that ship with the package: configuration templates and migrations, in a wheel as in a checkout."""

from __future__ import annotations

from pathlib import Path

from replicator.errors import ConfigError

TEMPLATE_NAMES = (
    "duckdb_rust_config.toml",
    "duckdb_python_config.toml",
    "replicator.toml",
    "env.example",
    "secrets.example.toml",
)
_PACKAGE = Path(__file__).resolve().parent.parent


def _shipped(name: str) -> Path:
    """``replicator/_name`` in an installed wheel, ``name`` beside the package in a checkout."""
    for found in (_PACKAGE / f"_{name}", _PACKAGE.parent / name):
        if found.is_dir():
            return found
    raise ConfigError(f"{_PACKAGE / f'_{name}'}: is missing from this installation; install the package again")


def config_templates_dir() -> Path:
    return _shipped("config")


def migrations_dir() -> Path:
    """Holds ``duckdb/`` and ``clickhouse/``."""
    return _shipped("migrations")


def write_templates(target: Path) -> list[Path]:
    """Write each template that ``target`` lacks, creating it; what exists is never touched. Returns what is new."""
    written = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in TEMPLATE_NAMES:
            content = (config_templates_dir() / name).read_bytes()
            try:
                with (target / name).open("xb") as file:
                    file.write(content)
            except FileExistsError:
                continue
            written.append(target / name)
    except OSError as error:
        raise ConfigError(f"{target}: the templates cannot be written: {error}") from error
    return written

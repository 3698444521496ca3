"""Settings: TOML, ``.env``, mounted secrets and the environment read into frozen values; the only reader of all four.

Guarantees: what it returns is complete, typed and free of contradictions; an error names every problem at once, each
with file, key, value and remedy. It must never coerce a value, ignore a key, or show a secret.

Reading order: ``values`` (every key), ``checks`` (one value), ``layers`` (what is written where), ``resolve`` (one
section), ``tables``, ``credentials``, ``load`` (the whole), ``templates`` (what ships).
"""

from replicator.config.layers import VARIABLES, Variable
from replicator.config.load import load_profile, load_settings
from replicator.config.templates import config_templates_dir, migrations_dir, write_templates
from replicator.config.values import (
    INERT,
    ClickHouse,
    Database,
    Dedup,
    ErrorHandling,
    Logging,
    Performance,
    Pipeline,
    Profile,
    Redis,
    Retention,
    Serve,
    Setting,
    Settings,
    Snapshots,
    Sync,
    TableConfig,
    Telemetry,
    Verify,
)

__all__ = [
    "INERT",
    "VARIABLES",
    "ClickHouse",
    "Database",
    "Dedup",
    "ErrorHandling",
    "Logging",
    "Performance",
    "Pipeline",
    "Profile",
    "Redis",
    "Retention",
    "Serve",
    "Setting",
    "Settings",
    "Snapshots",
    "Sync",
    "TableConfig",
    "Telemetry",
    "Variable",
    "Verify",
    "config_templates_dir",
    "load_profile",
    "load_settings",
    "migrations_dir",
    "write_templates",
]

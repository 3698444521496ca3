"""Opening the log's file as its owner: migrated, and with patience for those who only read it.

Guarantees: waits for programs that read the file, never for another owner. The only place that opens it to write.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from replicator.client import database_in_use
from replicator.config import Settings, migrations_dir
from replicator.database import Database, DatabaseOptions
from replicator.errors import DatabaseUnavailable
from replicator.snapshot_files import MAKING

READERS_SECONDS = 10.0
READERS_POLL_SECONDS = 0.01


def open_database(settings: Settings, applied: Callable[[str], None] = lambda _: None) -> Database:
    """The owner's database, migrated; ``applied`` hears of each migration. Raises DatabaseUnavailable or LogCorrupt."""
    profile = settings.writer
    options = DatabaseOptions(
        path=profile.database.path,
        threads=profile.performance.max_threads,
        memory_mb=profile.performance.cache_size_mb,
        temp_directory=profile.performance.temp_directory,
        attachable=settings.snapshots.directory.resolve() / MAKING,
    )
    database = _open_when_read(options, settings)
    try:
        for name in database.migrate(migrations_dir() / "duckdb"):
            applied(name)
    except BaseException:
        database.close()
        raise
    return database


def _open_when_read(options: DatabaseOptions, settings: Settings) -> Database:
    """Programs that read the file meanwhile hold it for no longer than a query: wait for them, never for an owner."""
    deadline = time.monotonic() + READERS_SECONDS
    while True:
        try:
            return Database.open(options)
        except DatabaseUnavailable as error:
            if error.code != "locked" or database_in_use(settings) or time.monotonic() > deadline:
                raise
        time.sleep(READERS_POLL_SECONDS)

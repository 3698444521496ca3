"""An event-sourced change-capture replicator: Redis streams to a DuckDB change log to ClickHouse.

What programs import stands here and is loaded when first asked for, so that no command pays for what it does not use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

_PUBLIC = {
    "BufferLimits": "replicator.outbox",
    "DuckDBManager": "replicator.db_manager",
    "Producer": "replicator.producer",
}
__all__ = ["BufferLimits", "DuckDBManager", "Producer", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("replicator")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

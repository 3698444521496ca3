"""``state`` and ``trace`` as the service and the commands answer them, in plain JSON values. Only reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from replicator.errors import UsageError
from replicator.state_past import rows_as_of
from replicator.trace import Tracer, plain

if TYPE_CHECKING:
    from replicator.database import Session
    from replicator.service import Service

ROWS_MAX = 100_000


def state_answer(service: Service, table: str, *, as_of: str | None, key: str | None, limit: int) -> dict[str, Any]:
    """A table's rows as they were. Raises UsageError for a table, an offset or an instant that is none."""
    history = service.catalog.history(table)
    if not history:
        known = ", ".join(sorted(service.catalog.current)) or "none is declared"
        raise UsageError(f"there is no table {table}", code="not_found", hint=f"tables: {known}")
    with _session(service) as session:
        past = rows_as_of(session, history, as_of=as_of, key=key, limit=limit)
    return {
        "table": past.table,
        "as_of_offset": past.as_of_offset,
        "columns": list(past.columns),
        "rows": [[_shown(*cell) for cell in zip(past.columns, row, strict=True)] for row in past.rows],
        "more": past.more,
    }


def trace_answer(service: Service, text: str, *, table: str | None) -> dict[str, Any]:
    """What happened to the changes that an offset, an event id, an entry id or a key names."""
    with _session(service) as session:
        tracer = Tracer(
            session=session,
            sink=service.sink,
            catalog=service.catalog,
            pipeline=service.settings.pipeline.name,
            failed_table=service.ledger.failed_table,
        )
        found = tracer.trace(text, table=table)
    if not found["changes"] and not found["rejected"]:
        oldest, hint = service.changelog.oldest, "give an offset, an id, an entry id or a key"
        if oldest > 1:
            hint = f"{hint}; the log begins at offset {oldest}: ClickHouse's T_log may hold what is older"
        raise UsageError(f"nothing is known of {text!r}", code="not_found", hint=hint)
    return found


def _shown(column: str, value: Any) -> Any:
    """A version is always text: whoever reads it as a number may lose digits."""
    return str(value) if column == "_version" else plain(value)


@contextmanager
def _session(service: Service) -> Iterator[Session]:
    session = service.database.session()
    try:
        yield session
    finally:
        session.close()

"""A table as it was: its rows as of an offset or an instant, from the log alone.

Guarantees: the answer is what T showed when that offset had been logged; where retention has removed what it would
take, it is refused, never guessed. Only reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import frozen

from replicator.database import Session
from replicator.errors import UsageError
from replicator.schema import TableSchema, quote
from replicator.state import as_of_sql
from replicator.typed import key_sql


@frozen(kw_only=True)
class Past:
    """Rows of a table as of ``as_of_offset``. ``more`` says that there were further ones."""

    table: str
    as_of_offset: int
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool


def resolve_offset(session: Session, as_of: str | None) -> int:
    """The offset meant by a number, an ISO 8601 instant, or None for now. Raises UsageError."""
    oldest, head = session.row("select coalesce(min(log_offset), 1), coalesce(max(log_offset), 0) from change_log") or (
        1,
        0,
    )
    if as_of is None:
        return int(head)
    offset = int(as_of) if as_of.isdecimal() else _offset_at(session, as_of)
    if offset > head:
        raise UsageError(f"offset {offset} is not logged yet", hint=f"the log ends at {head}")
    if oldest > 1:
        raise UsageError(
            f"the log begins at offset {oldest}: what was current at {offset} cannot be told from it",
            hint="ask ClickHouse's T_log, which may hold more",
        )
    return offset


def _offset_at(session: Session, text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is neither an offset nor an instant", hint="give 12345 or 2026-11-23T10:00:00Z"
        ) from error
    at = at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at
    row = session.row("select coalesce(max(log_offset), 0) from change_log where logged_at <= ?", [at])
    return int(row[0]) if row else 0


def rows_as_of(
    session: Session, history: Sequence[TableSchema], *, as_of: str | None, key: str | None = None, limit: int = 100
) -> Past:
    """The table's rows as they were, of one key or in the order of keys."""
    offset = resolve_offset(session, as_of)
    newest = history[-1]
    text = key_sql(newest)
    where = f"where {text} = $key " if key is not None else ""
    # what is current now needs no history, which retention may have cut short
    rows_then = f"from {quote(newest.name)}" if as_of is None else f"select * from ({as_of_sql(history, str(offset))})"
    sql = f"{rows_then} {where}order by {text} limit {limit + 1:d}"
    table = session.arrow(sql, {"key": key} if key is not None else {})
    rows = [tuple(row.values()) for row in table.slice(0, limit).to_pylist()]
    return Past(
        table=newest.name,
        as_of_offset=offset,
        columns=tuple(table.column_names),
        rows=tuple(rows),
        more=table.num_rows > limit,
    )

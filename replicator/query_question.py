"""A query as it is asked from outside, and the forms of its answer. Pure, and light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from attrs import field, frozen

from replicator.errors import SourceUnavailable, UsageError

SECONDS_DEFAULT = 60.0
SECONDS_MAX = 3600.0
ROWS_MAX = 1_000_000_000


class EntryNotCaptured(SourceUnavailable):
    """The entry that a query waited for is not in the log yet."""


class Format(StrEnum):
    """What a reader may ask for."""

    ARROW = "arrow"
    JSON = "json"
    CSV = "csv"

    @property
    def media_type(self) -> str:
        return {
            Format.ARROW: "application/vnd.apache.arrow.stream",
            Format.JSON: "application/json",
            Format.CSV: "text/csv; charset=utf-8",
        }[self]


@frozen(kw_only=True)
class Question:
    """What is asked. ``min_entry_id`` is a stream and an entry id to wait for."""

    sql: str
    parameters: Sequence[Any] | Mapping[str, Any] | None = field(default=None, repr=False)
    seconds: float = SECONDS_DEFAULT
    rows_max: int = ROWS_MAX
    min_entry_id: tuple[str, str] | None = None
    wait_seconds: float = 10.0

    def as_json(self) -> dict[str, Any]:
        """As the service wants it. Raises UsageError for a value that JSON cannot carry."""
        body: dict[str, Any] = {
            "sql": self.sql,
            "parameters": plain_values(self.parameters),
            "timeout_seconds": self.seconds,
            "max_rows": self.rows_max,
        }
        if self.min_entry_id is not None:
            stream, entry_id = self.min_entry_id
            body |= {"min_entry_id": {"stream": stream, "entry_id": entry_id}, "wait_seconds": self.wait_seconds}
        return body


def plain_values(parameters: Sequence[Any] | Mapping[str, Any] | None) -> Any:
    """Parameters as JSON carries them exactly. Raises UsageError."""
    if parameters is None:
        return None
    if isinstance(parameters, Mapping):
        return {name: plain(value) for name, value in parameters.items()}
    return [plain(value) for value in parameters]


def plain(value: Any) -> str | int | float | bool | None:
    """A parameter as JSON carries it exactly. Raises UsageError."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise UsageError(
        f"a parameter of type {type(value).__name__} cannot be handed over", hint="give text, a number, a date or None"
    )

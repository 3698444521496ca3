"""Every exception this package raises, grouped by who must act.

An error carries fields and a ``hint`` that says what to do; its text is one line for a person.
Adapters translate their drivers' errors into these in one place each; nothing else is caught by type.
"""

from __future__ import annotations

from collections.abc import Sequence


class ReplicatorError(Exception):
    """The root. ``message`` says what and where, ``hint`` says what to do about it."""

    def __init__(
        self, message: str, *, hint: str = "", code: int | str | None = None, column: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.column = column

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(ReplicatorError):
    """The operator edits the configuration. ``problems`` holds every one found, not the first."""

    def __init__(self, problems: str | Sequence[str], *, hint: str = "") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class UsageError(ReplicatorError):
    """The command or request was called with something it cannot accept."""


class SourceUnavailable(ReplicatorError):
    """Redis does not answer, or not as Redis: wait and retry."""


class SourceTurned(SourceUnavailable):
    """A stream is not the one that was read: settle what was read, then look again on a new connection."""


class SourceRefused(ReplicatorError):
    """Redis answers and refuses (password, ACL, a key of another type): the operator acts."""


class SinkUnavailable(ReplicatorError):
    """ClickHouse does not answer or is overloaded: wait and retry; the circuit opens."""


class SinkTurned(SinkUnavailable):
    """The sink, or the log, is not as it was: settle what is under way, then compare both again."""


class OutcomeUnknown(ReplicatorError):
    """An insert may or may not have run: ask the sink, then decide."""


class SinkRejected(ReplicatorError):
    """ClickHouse refuses these rows: split the batch, park the rows at fault."""


class SinkMisshapen(ReplicatorError):
    """A table in ClickHouse is missing or has another shape: stop that table and say so."""


class SinkRefused(ReplicatorError):
    """Wrong password or a missing grant: stop and say so; no retry mends it."""


class ChangeRejected(ReplicatorError):
    """One entry or change cannot be logged: keep it in ``rejected_entries`` and go on."""


class DatabaseUnavailable(ReplicatorError):
    """The DuckDB file cannot be opened or written now (locked, disk full): wait or act, then retry."""


class LogCorrupt(ReplicatorError):
    """The log contradicts itself or cannot be read: stop everything and say what to do."""


class OwnershipLost(ReplicatorError):
    """Another process or instance owns this pipeline: stop before touching anything."""

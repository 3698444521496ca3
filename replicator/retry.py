"""What an error means for a batch: one table from kind and ClickHouse code to a decision. Pure.

Guarantees: every error has exactly one decision and one sentence for the operator; a code that is not listed is an
outage first and a rejection when it repeats on the same rows. Never waits: it says how long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

from attrs import field, frozen
from attrs.validators import ge, min_len

from replicator.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
    ReplicatorError,
    SinkMisshapen,
    SinkRefused,
    SinkRejected,
    SinkTurned,
    SinkUnavailable,
)
from replicator.model import ParkReason


class Decision(StrEnum):
    """What becomes of a batch after an error."""

    WAIT = "wait"
    """Try the same batch again after the ladder's next wait."""
    ASK = "ask"
    """The insert may have run: ask the sink, then decide."""
    SPLIT = "split"
    """Rows are at fault: bisect, park those that are."""
    STOP_TABLE = "stop_table"
    """The table's shape is at fault: this table stops, the others go on."""
    STOP = "stop"
    """No retry mends it: say so and stop delivering."""
    AGAIN = "again"
    """Our own file was not to be had: try again, however often, and count nothing."""


OUTAGE_CODES = frozenset({3, 202, 203, 209, 210, 236, 241, 242, 252, 285, 319, 373, 394, 425, 439, 473, 999, 1000})
UNKNOWN_CODES = frozenset({159, 160, 209, 319, 394, 735})
"""The INSERT may have run, or still run: timeouts and interrupted connections. Source: ClickHouse ErrorCodes, 26.9."""
REJECTED_CODES = frozenset({6, 26, 27, 33, 38, 41, 43, 53, 69, 70, 72, 117, 130, 131, 190, 321, 349, 407, 469, 691})
MISSHAPEN_CODES = frozenset({10, 16, 20, 36, 44, 47, 60, 62, 81})
REFUSED_CODES = frozenset({164, 192, 193, 194, 291, 497, 516, 723})

SENTENCES: dict[type[ReplicatorError], str] = {
    SinkTurned: "ClickHouse or the log is not as it was; both are compared again before anything is sent",
    SinkUnavailable: "ClickHouse does not answer or is overloaded; delivery waits and tries again by itself",
    OutcomeUnknown: "the connection broke during an insert; what became of it is asked before anything is sent again",
    SinkRejected: "ClickHouse refuses some rows; they are found and parked, the others go on",
    SinkMisshapen: "the table in ClickHouse is missing or has another shape; this table waits, see `replicator check`",
    DatabaseUnavailable: "the DuckDB file cannot be read now; delivery tries again by itself",
    SinkRefused: "ClickHouse refuses the login or a grant is missing; `replicator check` prints the grants to give",
}

VIEW_AT_FAULT = "the rows are in the log table, but a view on it fails; this table waits until the view is mended"

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*(?:'|$)", re.DOTALL)
"""A string in a message, or what is left of one that was cut short: what it holds came from a row."""
_CONVERTED = re.compile(
    r"while converting (?:column `([^`]+)` from type|source column .*? to destination column (?:`([^`]+)`|(\w+)))"
)
_NAMED = re.compile(r"(?:^|, )(`[^`]+`|[A-Za-z_]\w*) = ")

_DECISIONS: dict[type[ReplicatorError], Decision] = {
    SinkUnavailable: Decision.WAIT,
    OutcomeUnknown: Decision.ASK,
    SinkRejected: Decision.SPLIT,
    SinkMisshapen: Decision.STOP_TABLE,
    SinkRefused: Decision.STOP,
    DatabaseUnavailable: Decision.AGAIN,
}


@frozen(kw_only=True)
class Ladder:
    """``waits_seconds[i]`` is waited before retry i, the last repeating; ``retries_max`` retries, then it is exhausted."""

    waits_seconds: Sequence[float] = field(validator=min_len(1))
    retries_max: int = field(validator=ge(0))

    def wait_seconds(self, retry: int) -> float | None:
        """The wait before the ``retry``-th retry (from 0), None when the ladder is exhausted."""
        if retry >= self.retries_max:
            return None
        return self.waits_seconds[min(retry, len(self.waits_seconds) - 1)]

    @property
    def last_seconds(self) -> float:
        """How often a probe goes out once the ladder is exhausted."""
        return self.waits_seconds[-1]


def kind_of_code(code: int, message: str, *, inserting: bool) -> type[ReplicatorError]:
    """The error class for a code of ClickHouse. Code 252 has two meanings, told apart by the message."""
    if code == 252 and "partitions" in message:
        return SinkRejected
    if inserting and code in UNKNOWN_CODES:
        return OutcomeUnknown
    for codes, kind in (
        (REJECTED_CODES, SinkRejected),
        (MISSHAPEN_CODES, SinkMisshapen),
        (REFUSED_CODES, SinkRefused),
    ):
        if code in codes:
            return kind
    return SinkUnavailable


def column_at_fault(message: str) -> str | None:
    """The columns that a message of ClickHouse names as at fault, as one text; never a part of a value.

    Source: ClickHouse 26.9, FunctionCast, the ArrowStream reader and CheckConstraintsTransform.
    """
    text = _QUOTED.sub("''", message)
    if converted := _CONVERTED.findall(text):
        return str(next(filter(None, converted[-1])))
    _, violated, values = text.partition("Column values: ")
    names = _NAMED.findall(values) if violated else []
    return ", ".join(name.strip("`") for name in names) or None


def decide(error: ReplicatorError, *, repeats: int, asked: bool = False) -> Decision:
    """What to do about an error that has met the same batch ``repeats`` times before in the same words.

    ``asked``: it came of a question about the batch, not of its insert. That is no reason to take rows for bad.
    """
    unlisted = isinstance(error, SinkUnavailable) and isinstance(error.code, int) and error.code not in OUTAGE_CODES
    if asked and isinstance(error, SinkRejected):
        return Decision.WAIT
    if unlisted and repeats >= 2 and not asked:
        return Decision.SPLIT
    for kind, decision in _DECISIONS.items():
        if isinstance(error, kind):
            return decision
    return Decision.STOP


def sentence(error: Exception) -> str:
    """What the operator is told."""
    return _sentence_of(type(error)) or str(error)


def told(error: Exception, *, asked: bool = False) -> str:
    """The sentence, then what was said in so many words. ``asked`` as for `decide`: no rows are parked for it."""
    known = None if asked and isinstance(error, SinkRejected) else _sentence_of(type(error))
    return f"{known}: {error}" if known else str(error)


def sentence_of_parked(reason: ParkReason, code: str | None, attempts: int) -> str | None:
    """The sentence for what a parked range met; None where it met no error: its message is a sentence of ours."""
    if reason is ParkReason.REJECTED:
        return SENTENCES[SinkRejected]
    if reason is ParkReason.LOST or attempts == 0:
        return None
    listed = code is not None and code.isdecimal()
    return SENTENCES[kind_of_code(int(code or 0), "", inserting=True) if listed else SinkUnavailable]


def _sentence_of(kind: type[Exception]) -> str | None:
    return next((text for known, text in SENTENCES.items() if issubclass(kind, known)), None)

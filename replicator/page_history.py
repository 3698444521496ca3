"""What the page remembers: the last hour as points for its plot, and what began and ended. Pure.

Guarantees: bounded, however long the service runs and whatever happens; what was unknown stays unknown; a lag that
rose and fell between two points is not lost.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import define, evolve, field, frozen

from replicator.status import Reason, State, StatusReport
from replicator.words import counted

HOUR_SECONDS = 3600.0
POINT_SECONDS = 5.0
EVENTS_MAX = 100
TOLD_AT_ONCE_MAX = 8
"""Of reasons that begin or end together so many are told one by one: a thousand tables may wait for one ClickHouse."""
TEXT_MAX = 600
_COUNTDOWN = re.compile(r"(?:, next probe)? in \d+ s\b")
_NUMBER = re.compile(r"(?<![\w.])\d[\d.,]*(?!\w)")


@frozen(kw_only=True)
class Point:
    """One instant of the plot; what was not known is None."""

    at: float
    lag_changes: int | None
    lag_seconds: float | None
    entries_read: float | None
    rows_delivered: float | None

    def as_json(self) -> list[Any]:
        return [
            round(self.at, 1),
            self.lag_changes,
            _rounded(self.lag_seconds),
            _rounded(self.entries_read),
            _rounded(self.rows_delivered),
        ]


@frozen(kw_only=True)
class Event:
    """Something that began, ended or happened. ``what`` is ``began``, ``ended`` or ``happened``."""

    at: float
    what: str
    state: State
    text: str

    def as_json(self) -> dict[str, Any]:
        return {"at": round(self.at, 1), "what": self.what, "state": str(self.state), "text": self.text[:TEXT_MAX]}


@define
class History:
    """The last hour, a point every few seconds."""

    points: deque[Point] = field(factory=lambda: deque(maxlen=int(HOUR_SECONDS / POINT_SECONDS)))
    _worst: Point | None = None

    def take(self, report: StatusReport, at: float) -> None:
        """Add what a report says; between two points the worst lag is kept."""
        now = Point(
            at=at,
            lag_changes=report.sink.lag_changes,
            lag_seconds=report.sink.lag_seconds,
            entries_read=report.rates.entries_read,
            rows_delivered=report.rates.rows_delivered,
        )
        if self.points and at - self.points[-1].at < POINT_SECONDS - 0.5:
            self._worst = _worse(self._worst, now)
            return
        self.points.append(_worse(self._worst, now))
        self._worst = None
        while self.points[0].at < at - HOUR_SECONDS:
            self.points.popleft()

    def as_json(self) -> list[list[Any]]:
        return [point.as_json() for point in list(self.points)]


def _worse(before: Point | None, now: Point) -> Point:
    """``now`` with the larger lag of the two; where it is unknown now, it is unknown."""
    if before is None:
        return now
    return evolve(
        now,
        lag_changes=_larger(before.lag_changes, now.lag_changes),
        lag_seconds=_larger(before.lag_seconds, now.lag_seconds),
    )


def _larger(before: Any, now: Any) -> Any:
    return now if before is None or now is None else max(before, now)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


@define
class Chronicle:
    """Compares each report with the one before, and tells what began and what ended."""

    events: deque[Event] = field(factory=lambda: deque(maxlen=EVENTS_MAX))
    since: dict[str, float] = field(factory=dict)
    """Since when each reason holds, by `reason_key`."""
    _reasons: dict[str, Reason] = field(factory=dict)
    _before: StatusReport | None = None

    def take(self, report: StatusReport, at: float) -> None:
        reasons = {reason_key(reason): reason for reason in report.reasons}
        began = [reason for key, reason in reasons.items() if key not in self._reasons]
        ended = [reason for key, reason in self._reasons.items() if key not in reasons]
        self.since = {key: self.since.get(key, at) for key in reasons}
        self._reasons = reasons
        told = [*_happened(self._before, report), *_told("ended", ended), *_told("began", began)]
        for what, state, text in told:
            self.events.append(Event(at=at, what=what, state=state, text=text))
        self._before = report

    def as_json(self) -> list[dict[str, Any]]:
        """Newest first."""
        return [event.as_json() for event in reversed(list(self.events))]


def reason_key(reason: Reason) -> str:
    """What stays the same of a reason while its numbers change."""
    return _NUMBER.sub("#", _COUNTDOWN.sub("", reason.text))


Told = tuple[str, State, str]


def _told(what: str, reasons: Sequence[Reason]) -> Iterator[Told]:
    yield from ((what, reason.state, _COUNTDOWN.sub("", reason.text)) for reason in reasons[:TOLD_AT_ONCE_MAX])
    if len(reasons) > TOLD_AT_ONCE_MAX:
        yield what, reasons[TOLD_AT_ONCE_MAX].state, f"{len(reasons) - TOLD_AT_ONCE_MAX} more reasons"


def _happened(before: StatusReport | None, now: StatusReport) -> Iterator[Told]:
    if before is None:
        yield "happened", State.OK, "the service has started"
        return
    if now.state is not before.state:
        yield "happened", now.state, f"{before.state} → {now.state}"
    if now.verify.last_at is not None and now.verify.last_at != before.verify.last_at:
        found = now.verify.mismatches
        text = "verify found both sides equal" if not found else f"verify found {counted(found, 'difference')}"
        yield "happened", State.FAILED if found else State.OK, text
    restarts = {loop.loop: loop.restarts for loop in before.loops}
    for loop in now.loops:
        if loop.restarts > restarts.get(loop.loop, 0):
            yield "happened", State.DEGRADED, f"{loop.loop} was started again"

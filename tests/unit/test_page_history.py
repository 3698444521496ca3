"""What the page remembers: bounded, unknown stays unknown, nothing told twice."""

from __future__ import annotations

import json

from attrs import evolve

from replicator.page_history import EVENTS_MAX, HOUR_SECONDS, TOLD_AT_ONCE_MAX, Chronicle, History, reason_key
from replicator.status import LoopStatus, Reason, ReasonKind, SinkStatus, State, StatusReport, VerifyStatus

REPORT = StatusReport(pipeline="main", running=True, database="x")


def lagging(changes: int | None, seconds: float | None = 1.0) -> StatusReport:
    return evolve(REPORT, sink=SinkStatus(lag_changes=changes, lag_seconds=seconds))


def because(*texts: str, state: State = State.DEGRADED) -> StatusReport:
    return evolve(REPORT, notes=[Reason(kind=ReasonKind.PAUSED, state=state, text=text) for text in texts])


def told(chronicle: Chronicle) -> list[tuple[str, str]]:
    return [(event.what, event.text) for event in chronicle.events]


def test_an_hour_is_kept_and_no_more() -> None:
    history = History()
    for n in range(5000):
        history.take(lagging(n), 2.0 * n)
    assert 600 <= len(history.points) <= 720
    assert history.points[-1].at - history.points[0].at <= HOUR_SECONDS
    assert len(json.dumps(history.as_json())) < 40_000


def test_a_lag_between_two_points_is_not_lost() -> None:
    history = History()
    for at, lag in ((0, 1), (2, 900), (4, 3), (5, 2)):
        history.take(lagging(lag, float(lag)), at)
    assert [(p.lag_changes, p.lag_seconds) for p in history.points] == [(1, 1.0), (900, 900.0)]


def test_what_is_unknown_stays_unknown() -> None:
    history = History()
    history.take(lagging(None, None), 0)
    history.take(lagging(5, 5.0), 2)
    history.take(lagging(None, None), 5)
    assert history.as_json() == [[0, None, None, None, None], [5, None, None, None, None]]


def test_a_reason_whose_numbers_change_begins_once_and_ends_once() -> None:
    chronicle = Chronicle()
    chronicle.take(REPORT, 0)
    for at, wait in ((2, ", next probe in 3 s"), (4, ", next probe in 1 s"), (6, "")):
        chronicle.take(because(f"delivery of t1 waits for ClickHouse{wait}: refused"), at)
    assert list(chronicle.since.values()) == [2]
    chronicle.take(REPORT, 8)
    assert told(chronicle) == [
        ("happened", "the service has started"),
        ("happened", "ok → degraded"),
        ("began", "delivery of t1 waits for ClickHouse: refused"),
        ("happened", "degraded → ok"),
        ("ended", "delivery of t1 waits for ClickHouse: refused"),
    ]
    assert chronicle.since == {}


def test_two_tables_with_numbers_in_their_names_are_two() -> None:
    one, two = (
        Reason(kind=ReasonKind.PAUSED, state=State.FAILED, text=f"delivery of trades_{n} is stopped: 12 rows")
        for n in (1, 2)
    )
    assert reason_key(one) != reason_key(two)
    assert reason_key(one) == reason_key(evolve(one, text=one.text.replace("12", "1,300")))


def test_a_thousand_reasons_at_once_leave_room_for_others() -> None:
    chronicle = Chronicle()
    chronicle.take(REPORT, 0)
    names = ["x" * n for n in range(1, 1001)]
    chronicle.take(because(*(f"delivery of {name} is stopped" for name in names)), 1)
    assert len(chronicle.events) == 2 + TOLD_AT_ONCE_MAX + 1
    assert told(chronicle)[-1] == ("began", f"{1000 - TOLD_AT_ONCE_MAX} more reasons")


def test_what_is_told_is_bounded() -> None:
    chronicle = Chronicle()
    for n in range(1000):
        chronicle.take(because("x" * 10_000) if n % 2 else REPORT, n)
    assert len(chronicle.events) == EVENTS_MAX
    assert max(len(event["text"]) for event in chronicle.as_json()) < 1000
    assert chronicle.as_json()[0]["at"] == 999


def test_a_verify_and_a_restarted_loop_are_told() -> None:
    chronicle = Chronicle()
    chronicle.take(evolve(REPORT, loops=[LoopStatus(loop="capture", running=True)]), 0)
    verified = VerifyStatus(last_at="2026-01-01T00:00:00Z", mismatches=0)
    chronicle.take(evolve(REPORT, loops=[LoopStatus(loop="capture", running=True, restarts=1)], verify=verified), 2)
    chronicle.take(evolve(REPORT, verify=VerifyStatus(last_at="2026-01-02T00:00:00Z", mismatches=3)), 4)
    assert told(chronicle)[1:3] == [
        ("happened", "verify found both sides equal"),
        ("happened", "capture was started again"),
    ]
    assert ("happened", "verify found 3 differences") in told(chronicle)

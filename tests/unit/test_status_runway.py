"""What rates foresee, and what they cannot: unknown, never and without a limit are three things."""

from __future__ import annotations

import pytest
from attrs import evolve

from replicator.cli_status_view import lasting
from replicator.status import FailedStatus, Outlook, Rates, Runway, SinkStatus, StatusReport
from replicator.status_runway import RATE_WINDOW_SECONDS, RUNWAY_SECONDS_KNOWN, Sample, foresee, recent_rates

REPORT = StatusReport(pipeline="main", running=True, database="d.duckdb", disk_free_bytes=1000)


def sample(at: float, count: int = 0, redis_bytes: int | None = None) -> Sample:
    return Sample(
        at=at,
        entries_read=count,
        changes_logged=count,
        rows_delivered=count,
        log_bytes=count,
        redis_bytes=redis_bytes,
    )


def of_disk(*samples: Sample, free: int | None = 1000) -> tuple[Outlook, float | None]:
    found = foresee(evolve(REPORT, disk_free_bytes=free), samples, None)
    return found.disk, found.disk_seconds


def of_redis(before: int | None, now: int | None, maximum: int | None) -> tuple[Outlook, float | None]:
    found = foresee(REPORT, (sample(0, redis_bytes=before), sample(100, redis_bytes=now)), maximum)
    return found.redis, found.redis_seconds


def of_delivery(
    lag: int | None, *, logged: float | None = 1.0, out: float | None = 1.0, age: float | None = 60.0, parked: int = 0
) -> tuple[Outlook, float | None]:
    rates, sink = Rates(changes_logged=logged, rows_delivered=out), SinkStatus(lag_changes=lag, lag_seconds=age)
    report = evolve(
        REPORT, sink=sink, rates=rates, sync_interval_seconds=1.0, failed_syncs=FailedStatus(open=parked, rows=parked)
    )
    found = foresee(report, (sample(0),), None)
    return found.catch_up, found.catch_up_seconds


def test_rates_are_of_the_last_while_and_known_where_samples_are_far_apart() -> None:
    steady = tuple(sample(10.0 * turn, 100 * turn) for turn in range(7))
    assert recent_rates(steady) == Rates(entries_read=10, changes_logged=10, rows_delivered=10)
    far = 3 * RATE_WINDOW_SECONDS
    sparse = (sample(0, 0), sample(far, 0), sample(2 * far, 900))
    assert recent_rates(sparse) == Rates(entries_read=10, changes_logged=10, rows_delivered=10)


def test_rates_are_unknown_from_one_sample_alone() -> None:
    assert recent_rates((sample(5, 5),)) == recent_rates((sample(5, 5), sample(5.1, 9))) == Rates()


def test_a_disk_that_fills_has_so_many_seconds() -> None:
    assert of_disk(sample(0, 0), sample(100, 500)) == (Outlook.FORESEEN, 200.0)
    assert of_disk(sample(0, 0), sample(100, 0)) == of_disk(sample(0, 9), sample(100, 0)) == (Outlook.NEVER, None)
    assert of_disk(sample(0, 0), sample(100, 0), free=0) == (Outlook.FORESEEN, 0.0)


def test_a_trend_needs_a_while_and_a_figure() -> None:
    short = (sample(0, 0), sample(RUNWAY_SECONDS_KNOWN / 2, 500))
    assert of_disk(*short) == of_disk(sample(0)) == (Outlook.UNKNOWN, None)
    assert of_disk(sample(0, 0), sample(100, 500), free=None) == (Outlook.UNKNOWN, None)


def test_redis_may_fill_never_or_have_no_limit() -> None:
    assert of_redis(100, 200, 1200) == (Outlook.FORESEEN, 1000.0)
    assert of_redis(200, 200, 1200) == of_redis(300, 200, 1200) == (Outlook.NEVER, None)
    assert of_redis(1300, 1300, 1200) == (Outlook.FORESEEN, 0.0)
    assert of_redis(100, 200, 0) == of_redis(None, None, 0) == (Outlook.UNLIMITED, None)
    assert of_redis(None, 200, 1200) == of_redis(100, None, 1200) == of_redis(100, 200, None) == (Outlook.UNKNOWN, None)


def test_delivery_that_is_no_faster_than_capture_never_catches_up() -> None:
    assert of_delivery(100, logged=10, out=30) == (Outlook.FORESEEN, 5.0)
    assert of_delivery(100, logged=10, out=10) == of_delivery(100, logged=10, out=3) == (Outlook.NEVER, None)
    assert of_delivery(0, logged=10, out=10) == of_delivery(0, logged=None, out=None) == (Outlook.FORESEEN, 0.0)
    assert of_delivery(None) == of_delivery(9, logged=None) == of_delivery(9, out=None) == (Outlook.UNKNOWN, None)


def test_what_is_merely_on_its_way_is_caught_up() -> None:
    assert of_delivery(1000, logged=1000, out=990, age=1.5) == (Outlook.FORESEEN, 0.0)
    assert of_delivery(1000, logged=1000, out=990, age=7.0) == (Outlook.NEVER, None)
    assert of_delivery(1001, logged=1000, out=990, age=60.0, parked=1) == (Outlook.NEVER, None)
    assert of_delivery(1000, logged=1000, out=990, age=None) == (Outlook.NEVER, None)


def test_what_is_parked_is_not_what_delivery_has_to_catch_up_with() -> None:
    assert of_delivery(1, logged=78, out=78, parked=1) == (Outlook.FORESEEN, 0.0)
    assert of_delivery(101, logged=10, out=30, parked=1) == (Outlook.FORESEEN, 5.0)


@pytest.mark.parametrize(
    ("runway", "words"),
    [
        (Runway(), "disk unknown, Redis unknown, caught up in unknown"),
        (Runway(disk=Outlook.NEVER, redis=Outlook.UNLIMITED), "disk not filling, Redis without a limit"),
        (Runway(catch_up=Outlook.FORESEEN, catch_up_seconds=5.0), "caught up in 5.0 s"),
        (Runway(catch_up=Outlook.NEVER), "falling behind: more is logged than delivered"),
        (Runway(disk=Outlook.FORESEEN, disk_seconds=1e9), "disk years,"),
    ],
)
def test_each_is_said_in_its_own_words(runway: Runway, words: str) -> None:
    assert words in lasting(evolve(REPORT, runway=runway).as_json()["runway"])

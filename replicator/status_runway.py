"""Rates from samples of the counters, and what they foresee: when the disk and Redis' memory are full, when we catch up."""

from __future__ import annotations

from attrs import frozen

from replicator.status import Outlook, Rates, Runway, StatusReport

SAMPLE_SECONDS = 2.0
RATE_WINDOW_SECONDS = 30.0
RUNWAY_WINDOW_SECONDS = 600.0
RUNWAY_SECONDS_KNOWN = 20.0
"""What was watched for less says nothing of a trend."""
ON_ITS_WAY_SECONDS = 5.0
"""What is no older than this beyond the interval that delivery is given is not behind: some is always on its way."""
Foreseen = tuple[Outlook, float | None]
UNKNOWN: Foreseen = (Outlook.UNKNOWN, None)
NEVER: Foreseen = (Outlook.NEVER, None)


@frozen(kw_only=True)
class Sample:
    """Counters at one instant, in seconds of the monotonic clock."""

    at: float
    entries_read: int
    changes_logged: int
    rows_delivered: int
    log_bytes: int
    redis_bytes: int | None


def recent_rates(samples: tuple[Sample, ...]) -> Rates:
    """What happened per second lately; unknown until two samples are far enough apart."""
    old, new = _before(samples, RATE_WINDOW_SECONDS), samples[-1]
    seconds = new.at - old.at
    if seconds < SAMPLE_SECONDS / 2:
        return Rates()
    return Rates(
        entries_read=(new.entries_read - old.entries_read) / seconds,
        changes_logged=(new.changes_logged - old.changes_logged) / seconds,
        rows_delivered=(new.rows_delivered - old.rows_delivered) / seconds,
    )


def _before(samples: tuple[Sample, ...], window_seconds: float) -> Sample:
    """The oldest sample within the window before the last one; where samples are further apart, the one before it."""
    *earlier, newest = samples
    return next((s for s in earlier if newest.at - s.at <= window_seconds), earlier[-1] if earlier else newest)


def foresee(report: StatusReport, samples: tuple[Sample, ...], redis_bytes_max: int | None) -> Runway:
    """What runs out when, if all goes on as it did over the samples. ``redis_bytes_max``: 0 where Redis has no limit."""
    old, new = samples[0], samples[-1]
    disk, disk_seconds = _until_full(report.disk_free_bytes, old.log_bytes, new.log_bytes, new.at - old.at)
    if redis_bytes_max == 0:
        redis, redis_seconds = Outlook.UNLIMITED, None
    else:
        known = redis_bytes_max is not None and new.redis_bytes is not None
        free = redis_bytes_max - new.redis_bytes if known else None  # type: ignore[operator]
        redis, redis_seconds = _until_full(free, old.redis_bytes, new.redis_bytes, new.at - old.at)
    catch_up, catch_up_seconds = _catch_up(report)
    return Runway(
        disk=disk,
        disk_seconds=disk_seconds,
        redis=redis,
        redis_seconds=redis_seconds,
        catch_up=catch_up,
        catch_up_seconds=catch_up_seconds,
    )


def _until_full(free: int | None, before: int | None, now: int | None, seconds: float) -> Foreseen:
    if free is not None and free <= 0:
        return Outlook.FORESEEN, 0.0
    if free is None or before is None or now is None or seconds < RUNWAY_SECONDS_KNOWN:
        return UNKNOWN
    growth = (now - before) / seconds
    return (Outlook.FORESEEN, free / growth) if growth > 0 else NEVER


def _catch_up(report: StatusReport) -> Foreseen:
    lag, age, rates = report.sink.lag_changes, report.sink.lag_seconds, report.rates
    on_its_way = age is not None and age <= report.sync_interval_seconds + ON_ITS_WAY_SECONDS
    waiting = None if lag is None else lag - (report.failed_syncs.rows or 0)  # what is parked waits for something else
    if waiting is not None and (waiting <= 0 or on_its_way):
        return Outlook.FORESEEN, 0.0
    if waiting is None or rates.rows_delivered is None or rates.changes_logged is None:
        return UNKNOWN
    gain = rates.rows_delivered - rates.changes_logged
    return (Outlook.FORESEEN, waiting / gain) if gain > 0 else NEVER

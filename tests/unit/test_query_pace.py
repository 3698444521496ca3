"""Readers' queries leave the service's time to capture while that is busy, and never wait while it is not."""

from __future__ import annotations

import time

import pytest

from replicator.capture import CaptureProgress
from replicator.query import QueryFailed
from replicator.query_pace import SAMPLE_SECONDS, Pace


def test_while_capture_is_busy_queries_rest_nine_times_as_long_as_they_work() -> None:
    progress = CaptureProgress()
    pace, began, worked = Pace(progress), time.monotonic(), 0.0
    while worked < 0.02:
        progress.changes_appended += 10_000_000
        pace._sampled_at -= SAMPLE_SECONDS
        with pace.work(lambda: None):
            start = time.thread_time()
            while time.thread_time() - start < 0.004:
                pass
        worked += time.thread_time() - start
    assert time.monotonic() - began >= 9 * (worked - 0.004 - 0.004), "all but the first and the last were waited for"


def test_while_capture_has_time_queries_never_wait() -> None:
    progress = CaptureProgress()
    pace = Pace(progress)
    for _ in range(3):
        with pace.work(lambda: pytest.fail("it waits")):
            start = time.thread_time()
            while time.thread_time() - start < 0.002:
                pass
        progress.changes_appended += 1


def test_a_query_that_waits_for_its_turn_can_be_cancelled() -> None:
    progress = CaptureProgress(changes_appended=1 << 60)
    pace = Pace(progress, free_at=time.monotonic() + 3600, sampled_at=time.monotonic() - 1)

    def cancelled() -> None:
        raise QueryFailed("the reader left", code="left")

    with pytest.raises(QueryFailed, match="left"), pace.work(cancelled):
        pass

"""Readers' queries leave the service's time to capture while that is busy, and never wait while it is not."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from contract.fakes import wait_until

from replicator.capture import CaptureProgress
from replicator.query import QueryFailed
from replicator.query_pace import BUSY_SECONDS, REST_FACTOR, SAMPLE_SECONDS, Pace
from replicator.query_process import QueryProcesses
from replicator.query_worker import NICE


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


def test_capture_that_is_behind_is_busy_however_slow_and_for_a_while_after_each_commit() -> None:
    progress = CaptureProgress(behind=True)
    pace = Pace(progress, free_at=time.monotonic() + 3600)

    def sampled(grown: int) -> bool:
        progress.changes_appended += grown
        pace._sampled_at -= SAMPLE_SECONDS
        return pace._wait() > 0

    assert not sampled(0), "behind, but nothing is logged: it is paused"
    assert sampled(1)
    assert sampled(0), "between two commits"
    pace._busy_until -= BUSY_SECONDS
    assert not sampled(0)
    progress.behind = False
    assert not sampled(100)


def test_what_other_threads_do_for_a_query_counts_as_its_work() -> None:
    pace = Pace(None)
    with pace.work(lambda: None):
        time.sleep(0.02)
    assert pace._free_at < time.monotonic() + REST_FACTOR * 0.01, "this thread did nothing"
    with pace.work(lambda: None, others_too=True):
        time.sleep(0.02)
    assert pace._free_at > time.monotonic() + REST_FACTOR * 0.01


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the processor is shared by other rules")
def test_what_computes_queries_is_last_in_line_for_the_processor_alone_and_as_a_group(tmp_path: Path) -> None:
    processes = QueryProcesses(directory=tmp_path)
    process = processes.take()
    try:
        pid = process.process.pid
        wait_until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == NICE)
        group = Path(f"/proc/{pid}/autogroup")
        wait_until(lambda: not group.exists() or not group.read_text() or f"nice {NICE}" in group.read_text())
    finally:
        process.bury()
        processes.close()

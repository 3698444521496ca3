"""A job's end can be asked for by its id, whatever began since."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.database import Database, DatabaseOptions, Session
from replicator.errors import ReplicatorError, UsageError
from replicator.service_job import REBUILD, SNAPSHOT, VERIFY, Job, Jobs


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=1))
    yield Jobs(database=database, stop=threading.Event())
    database.close()


def test_a_job_that_another_followed_is_still_known(jobs: Jobs) -> None:
    first: list[Job] = []

    def work(_: Session, job: Job) -> dict[str, str]:
        first.append(job)
        return {"job": job.id}

    for _ in range(3):
        jobs.run(SNAPSHOT, work)
    for job in first:
        assert jobs.of(SNAPSHOT, job.id).result == {"job": job.id}
    assert jobs.of(SNAPSHOT) is first[-1]
    with pytest.raises(UsageError, match="no comparison"):
        jobs.of(VERIFY, first[0].id)


def test_only_so_many_are_kept(jobs: Jobs) -> None:
    for _ in range(100):
        jobs.run(SNAPSHOT, lambda _, job: {"job": job.id})
    assert len(jobs.recent) < 50


@pytest.mark.parametrize("asked", [VERIFY, REBUILD])
def test_what_runs_on_a_schedule_makes_room_for_what_is_asked_for(jobs: Jobs, asked: str) -> None:
    begun, order, ends = threading.Event(), [], []

    def paced(_: Session, job: Job) -> dict[str, str]:
        begun.set()
        try:
            jobs.rest(job, 60)
        finally:
            order.append("the scheduled one has ended")
        return {}

    def scheduled() -> None:
        with pytest.raises(ReplicatorError, match="made room") as ended:
            jobs.run(VERIFY, paced, yields=True)
        ends.append(ended)

    thread = threading.Thread(target=scheduled)
    thread.start()
    assert begun.wait(30)
    jobs.run(asked, lambda _, job: {"at": str(order.append("the one asked for has begun"))})
    thread.join()
    assert order == ["the scheduled one has ended", "the one asked for has begun"] and ends


def test_what_was_asked_for_first_is_named_with_how_to_end_it(jobs: Jobs) -> None:
    begun = threading.Event()

    def work(_: Session, job: Job) -> dict[str, str]:
        begun.set()
        jobs.rest(job, 60)
        return {}

    job = jobs.start(VERIFY, work)
    assert begun.wait(30)
    with pytest.raises(UsageError, match="a comparison is running already") as refused:
        jobs.start(VERIFY, work)
    assert f"POST /api/v1/verify/{job.id}/cancel" in refused.value.hint
    jobs.cancel(VERIFY, job.id)
    assert job.ended.wait(30)

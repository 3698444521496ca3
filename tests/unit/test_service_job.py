"""A job's end can be asked for by its id, whatever began since."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.database import Database, DatabaseOptions, Session
from replicator.errors import UsageError
from replicator.service_job import SNAPSHOT, VERIFY, Job, Jobs


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

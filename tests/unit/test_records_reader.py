"""Records are read again after a commit, and only then: an idle service asks its file nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import status_file
from replicator.config import migrations_dir
from replicator.database import Database, DatabaseOptions, Session
from replicator.status_file import RecordsReader


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=1))
    database.migrate(migrations_dir() / "duckdb")
    yield database.session()
    database.close()


@pytest.fixture(autouse=True)
def resting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_file, "REST_SECONDS", 0.0)


def gaps(reader: RecordsReader, session: Session) -> int:
    return reader.read(session, "failed_syncs")[0].gaps.open


def add_gap(session: Session) -> None:
    session.execute("insert into stream_gaps (stream, cause, found_at, status) values ('s', 'trimmed', now(), 'open')")


def test_a_file_at_rest_is_read_once(session: Session) -> None:
    reader = RecordsReader()
    assert [gaps(reader, session) for _ in range(5)] == [0] * 5
    assert reader.reads == 1


def test_a_commit_is_seen_at_once(session: Session) -> None:
    reader = RecordsReader()
    gaps(reader, session)
    for count in (1, 2):
        add_gap(session)
        assert gaps(reader, session) == count
    session.execute("checkpoint")
    assert gaps(reader, session) == 2


def test_what_was_read_as_something_was_written_is_read_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_file, "REST_SECONDS", 60.0)
    reader = RecordsReader()
    for _ in range(3):
        gaps(reader, session)
    assert reader.reads == 3


def test_nothing_is_held_for_long_whatever_the_file_says(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_file, "HELD_SECONDS_MAX", 0.0)
    reader = RecordsReader()
    assert [gaps(reader, session), gaps(reader, session)] == [0, 0]
    assert reader.reads == 2


def test_an_age_that_grows_is_never_held(session: Session) -> None:
    session.execute(
        "insert into failed_syncs (table_name, first_offset, last_offset, row_count, reason, attempts, first_failed_at, "
        "last_failed_at, status) values ('t', 1, 2, 2, 'outage', 3, now() - interval 1 hour, now(), 'open')"
    )
    reader = RecordsReader()
    first, second = (reader.read(session, "failed_syncs")[0].failed.oldest_age_seconds for _ in range(2))
    assert first is not None and second is not None and second >= first > 3000
    assert reader.reads == 2

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


def test_a_parked_range_is_as_old_as_the_oldest_change_of_its_own_lane(session: Session) -> None:
    session.execute(
        "insert into change_log by name select offset_ as log_offset, offset_ as version, table_ as table_name, 'u' as op, "
        "'k' as key, 1 as schema_version, timestamp '2026-01-01' + to_seconds(offset_) as logged_at, 's' as stream, "
        "1 as stream_epoch, '1-1' as entry_id, 0 as entry_row "
        "from (values (1, 'orders'), (2, 'orders'), (3, 'trades'), (4, 'trades'), (5, 'orders')) changes(offset_, table_)"
    )
    session.execute(
        "insert into failed_syncs by name select 1 as id, 'trades' as table_name, 1 as first_offset, 4 as last_offset, "
        "2 as row_count, 'outage' as reason, 'refused' as error_message, 3 as attempts, "
        "timestamp '2026-02-01' as first_failed_at, timestamp '2026-02-01' as last_failed_at, 'open' as status"
    )
    reader = RecordsReader()
    ((third,),) = session.rows("select epoch(logged_at) from change_log where log_offset = 3")
    assert reader.read(session, "failed_syncs")[0].parked_since == third
    session.execute("delete from change_log where log_offset <= 4")
    ((failed,),) = session.rows("select epoch(first_failed_at) from failed_syncs")
    assert reader.read(session, "failed_syncs")[0].parked_since == failed
    session.execute("update failed_syncs set status = 'resolved'")
    assert reader.read(session, "failed_syncs")[0].parked_since is None

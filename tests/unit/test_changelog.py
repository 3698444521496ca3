"""The log: offsets without gaps, stored with the positions and rejections of the same read or not at all."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from log_room import MIGRATIONS, changes

from replicator.changelog import Append, ChangeLog
from replicator.database import Database, DatabaseOptions, Session
from replicator.errors import DatabaseUnavailable, LogCorrupt, OwnershipLost
from replicator.model import REJECTION_SCHEMA, EntryId, StreamPosition

NOTHING = REJECTION_SCHEMA.empty_table()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=1, checkpoint_threshold="1MB"))
    database.migrate(MIGRATIONS / "duckdb")
    yield database
    database.close()


@pytest.fixture
def session(database: Database) -> Session:
    return database.session()


def position(entry: int) -> StreamPosition:
    return StreamPosition(stream="trades", last_entry_id=EntryId(f"{entry}-0"), entries_read=entry)


def append_of(first: int, rows: int, *, rejected: int = 0) -> Append:
    rejections = pa.table(
        {
            "stream": ["trades"] * rejected,
            "stream_epoch": [1] * rejected,
            "entry_id": ["9-9"] * rejected,
            "entry_row": [0] * rejected,
            "raw": [b"x"] * rejected,
            "reason": ["why"] * rejected,
        },
        schema=REJECTION_SCHEMA,
    )
    ids = range(first, first + rows)
    return Append(changes=changes(ids), rejections=rejections, positions=(position(first + rows - 1),))


def everything(session: Session) -> list[object]:
    tables = ("change_log", "rejected_entries", "stream_positions", "stream_gaps")
    return [sorted(map(repr, session.rows(f"from {table}"))) for table in tables]


def check_whole(session: Session) -> int:
    """Offsets without gaps, each entry once, the position where the log ends. Returns the head."""
    rows = session.rows("select log_offset, version, entry_id from change_log order by log_offset")
    assert [offset for offset, _, _ in rows] == list(range(1, len(rows) + 1))
    assert [version for _, version, _ in rows] == [(1 << 48) + offset for offset, _, _ in rows]
    assert [entry_id for _, _, entry_id in rows] == [f"{n}-0" for n in range(1, len(rows) + 1)]
    positions = session.rows("select entries_read from stream_positions")
    assert positions == ([(len(rows),)] if rows else [])
    return len(rows)


def test_appends_follow_one_another_without_a_gap_also_after_a_restart(database: Database, session: Session) -> None:
    log = ChangeLog.open(database)
    given = [log.append(session, append_of(first, rows)) for first, rows in ((1, 3), (4, 1), (5, 200))]
    assert [str(offsets) for offsets in given] == ["1..3", "4..4", "5..204"]
    again = ChangeLog.open(database)
    assert str(again.append(session, append_of(205, 2))) == "205..206"
    assert check_whole(session) == 206


def test_a_read_of_rejections_only_burns_no_offset(database: Database, session: Session) -> None:
    log = ChangeLog.open(database)
    assert log.append(session, append_of(1, 0, rejected=4)) is None
    assert log.head == 0
    assert session.rows("select count(*), min(status) from rejected_entries") == [(4, "open")]
    assert str(log.append(session, append_of(1, 1))) == "1..1"


def test_an_append_cut_off_anywhere_leaves_nothing(
    database: Database, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ChangeLog.open(database)
    log.append(session, append_of(1, 5))
    before, execute, count = everything(session), Session.execute, [0]
    for allowed in range(20):
        count[0] = 0

        def cut_off(self: Session, *arguments: object, allowed: int = allowed) -> None:
            count[0] += 1
            if count[0] > allowed:
                raise RuntimeError("cut off")
            execute(self, *arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(Session, "execute", cut_off)
            try:
                log.append(session, append_of(6, 3, rejected=2))
                break
            except RuntimeError:
                assert (everything(session), log.head) == (before, 5)
    assert check_whole(session) == 8


def test_who_lost_the_pipeline_before_the_commit_logs_nothing(database: Database, session: Session) -> None:
    def lost() -> None:
        raise OwnershipLost("another owns it")

    log = ChangeLog.open(database)
    with pytest.raises(OwnershipLost):
        log.append(session, append_of(1, 5), may_log=lost)
    assert (check_whole(session), log.head) == (0, 0)


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("megabytes", [2, 3, 4, 5, 6])
def test_no_offset_is_given_twice_when_a_full_disk_leaves_a_commit_in_doubt(
    database: Database, session: Session, megabytes: int
) -> None:
    """A commit whose own checkpoint fails may be durable or not: the file is asked, memory is not believed."""
    log, failures = ChangeLog.open(database), 0
    with disk_full_at(megabytes << 20):
        for _ in range(300):
            try:
                log.append(session, append_of(log.head + 1, 2_000))
            except DatabaseUnavailable:
                failures += 1
                if failures == 3:
                    break
                while_full(log, session)
    assert failures
    log.reread(session)
    for _ in range(3):
        log.append(session, append_of(log.head + 1, 1_000))
    assert check_whole(session) == log.head


def test_a_commit_that_was_reported_lost_and_is_not_gives_no_offset_away_twice(
    database: Database, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ChangeLog.open(database)
    commit = Session._commit

    def durable_but_reported_lost(self: Session, cursor: object) -> None:
        commit(self, cursor)  # type: ignore[arg-type]
        raise DatabaseUnavailable("the checkpoint failed")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_commit", durable_but_reported_lost)
        with pytest.raises(DatabaseUnavailable):
            log.append(session, append_of(1, 3))
    log.reread(session)
    assert str(log.append(session, append_of(4, 2))) == "4..5"
    assert check_whole(session) == 5


def while_full(log: ChangeLog, session: Session) -> None:
    for _ in range(5):
        try:
            return log.reread(session)
        except DatabaseUnavailable:
            continue
    return None


@pytest.mark.parametrize(
    "statement",
    ["delete from change_log where log_offset = 7", "insert into change_log from change_log where log_offset = 7"],
)
def test_a_log_with_a_hole_or_a_double_is_refused(database: Database, session: Session, statement: str) -> None:
    ChangeLog.open(database).append(session, append_of(1, 10))
    session.execute(statement)
    with pytest.raises(LogCorrupt, match="restore"):
        ChangeLog.open(database)

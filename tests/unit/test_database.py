"""The DuckDB file: what it refuses, what it survives, and that a commit is whole or not at all."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from replicator.database import Database, DatabaseOptions, Session
from replicator.errors import DatabaseUnavailable, LogCorrupt


def opened(path: Path, **options: object) -> Database:
    return Database.open(DatabaseOptions(path=path, threads=2, memory_mb=256, **options))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = opened(tmp_path / "log.duckdb", checkpoint_threshold="1MB")
    yield database
    database.close()


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes: what a write meets is what a full disk gives it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(session: Session, rows: int) -> None:
    with session.transaction():
        session.execute("insert into t select i, md5(i::varchar) || md5((-i)::varchar) from range(?) r(i)", [rows])


def count(session: Session) -> int:
    row = session.row("select count(*) from t")
    assert row is not None
    return row[0]


# ── opening ──


def test_a_file_that_another_process_owns_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "log.duckdb"
    hold = f"import duckdb,sys; c=duckdb.connect({str(path)!r}); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(DatabaseUnavailable, match=rf"in use by process {owner.pid}") as raised:
            opened(path)
        owner.communicate()
    assert raised.value.code == "locked"
    opened(path).close()


@pytest.mark.parametrize(
    "content",
    [b"hello, this is no database\n" * 500, b"\x00" * 12288, b"SQLite format 3\0".ljust(8192, b"\0")],
    ids=["a text", "zeros", "SQLite"],
)
def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.duckdb"
    path.write_bytes(content)
    with pytest.raises(LogCorrupt, match=r"log\.duckdb") as raised:
        opened(path)
    assert raised.value.hint
    assert path.read_bytes() == content


@pytest.fixture
def a_log(tmp_path: Path) -> Path:
    """A closed file with some blocks in it."""
    database = opened(tmp_path / "log.duckdb")
    session = database.session()
    session.execute("create table t (i bigint, s varchar)")
    fill(session, 100_000)
    database.close()
    return tmp_path / "log.duckdb"


@pytest.mark.parametrize("keep", [-10, -300_000, 300_000, 12_288, 8_192, 100, 0])
def test_a_truncated_file_is_refused_before_anything_is_written_to_it(a_log: Path, keep: int) -> None:
    a_log.write_bytes(a_log.read_bytes()[:keep])
    with pytest.raises(LogCorrupt, match=r"log\.duckdb") as raised:
        opened(a_log)
    assert "restore" in raised.value.hint


def test_a_flipped_bit_is_named_as_damage_and_never_read_as_data(a_log: Path) -> None:
    content = bytearray(a_log.read_bytes())
    content[-200_000] ^= 1
    a_log.write_bytes(content)
    with pytest.raises(LogCorrupt, match="damaged"):
        opened(a_log).session().rows("select sum(i), max(s) from t")


def test_a_file_of_a_newer_storage_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.duckdb"
    opened(path).close()
    content = bytearray(path.read_bytes())
    at = content.index(b"DUCK") + 4
    content[at : at + 8] = (9999).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(LogCorrupt, match=r"newer|version|9999"):
        opened(path)


def test_a_path_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailable, match="file"):
        opened(tmp_path / "file" / "log.duckdb")


def test_a_directory_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises((DatabaseUnavailable, LogCorrupt), match=tmp_path.name):
        opened(tmp_path)


# ── migrations ──


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    directory = tmp_path / "migrations"
    directory.mkdir()
    (directory / "0001_a.sql").write_text("create table a (i integer); insert into a values (1)")
    return directory


def test_migrations_apply_once_and_in_order(database: Database, scripts: Path) -> None:
    assert database.migrate(scripts) == ["0001_a.sql"]
    (scripts / "0002_b.sql").write_text("insert into a values (2)")
    assert database.migrate(scripts) == ["0002_b.sql"]
    assert database.migrate(scripts) == []
    assert database.session().rows("from a order by i") == [(1,), (2,)]


def test_an_edited_migration_is_refused(database: Database, scripts: Path) -> None:
    database.migrate(scripts)
    (scripts / "0001_a.sql").write_text("create table a (i bigint)")
    with pytest.raises(LogCorrupt, match=r"0001_a\.sql was edited"):
        database.migrate(scripts)


def test_a_migration_of_a_newer_release_is_refused(database: Database, scripts: Path) -> None:
    database.migrate(scripts)
    (scripts / "0001_a.sql").unlink()
    with pytest.raises(LogCorrupt, match=r"0001_a\.sql was applied") as raised:
        database.migrate(scripts)
    assert "newer release" in raised.value.hint


def test_a_migration_that_fails_leaves_nothing(database: Database, scripts: Path) -> None:
    (scripts / "0002_b.sql").write_text("create table b (i integer); insert into nowhere values (1)")
    with pytest.raises(duckdb.CatalogException):
        database.migrate(scripts)
    session = database.session()
    assert session.rows("select name from schema_migrations") == [("0001_a.sql",)]
    assert session.rows("select table_name from duckdb_tables() where table_name = 'b'") == []


# ── transactions and sessions ──


def test_a_transaction_that_raises_leaves_nothing_and_the_session_usable(database: Database) -> None:
    session = database.session()
    session.execute("create table t (i bigint, s varchar)")
    with pytest.raises(RuntimeError), session.transaction():
        session.execute("insert into t values (1, 'a')")
        raise RuntimeError
    assert count(session) == 0
    fill(session, 3)
    assert count(session) == 3


def test_relations_are_gone_after_their_block(database: Database) -> None:
    session = database.session()
    with session.relation(new_rows=pa.table({"i": [1, 2]})):
        assert session.rows("select sum(i) from new_rows") == [(3,)]
    with pytest.raises(duckdb.CatalogException):
        session.rows("from new_rows")


def test_sessions_of_many_threads_see_what_was_committed(database: Database) -> None:
    writer = database.session()
    writer.execute("create table t (i bigint, s varchar)")
    fill(writer, 10)
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(count(database.session()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [10] * 4


def test_a_row_that_was_asked_for_holds_up_no_checkpoint(database: Database) -> None:
    session, reader = database.session(), database.session()
    session.execute("create table t (i bigint, s varchar)")
    assert reader.row("select * from range(100000)") == (0,)
    for _ in range(8):
        fill(session, 5_000)
    assert database.wal_bytes() < 2 << 20


# ── a full disk ──


def test_a_disk_full_at_the_log_fails_that_transaction_only(tmp_path: Path) -> None:
    database = opened(tmp_path / "log.duckdb")
    session, reader = database.session(), database.session()
    session.execute("create table t (i bigint, s varchar)")
    fill(session, 20_000)
    with disk_full_at(database.wal_bytes() + 4096):
        with pytest.raises(DatabaseUnavailable) as raised:
            fill(session, 20_000)
        assert raised.value.code == "io"
        assert (count(session), count(reader)) == (20_000, 20_000)
    fill(session, 20_000)
    assert (count(session), count(reader)) == (40_000, 40_000)
    database.close()


def until_the_checkpoint_fails(database: Database, session: Session) -> int:
    """Commit until DuckDB's own checkpoint after a commit finds no room. Returns the rows certainly committed."""
    rows, generation = 0, database.generation
    session.execute("create table t (i bigint, s varchar)")
    while True:
        try:
            fill(session, 5_000)
        except DatabaseUnavailable as error:
            assert error.code == "fatal"
            return rows
        rows += 5_000
        if database.generation != generation:
            return rows
        assert rows < 1_000_000


def test_a_disk_full_at_a_checkpoint_keeps_what_was_committed_and_reopens(database: Database) -> None:
    session, reader = database.session(), database.session()
    assert reader.rows("select 1") == [(1,)]
    with disk_full_at(4 << 20):
        rows = until_the_checkpoint_fails(database, session)
    found = count(reader)
    assert found in (rows, rows + 5_000)  # whole or not at all; the caller asks which
    assert count(session) == found
    fill(session, 5_000)
    fill(reader, 5_000)
    assert count(session) == found + 10_000


def test_a_disk_still_full_is_an_outage_and_not_the_end(database: Database) -> None:
    session = database.session()
    with disk_full_at(4 << 20):
        rows = until_the_checkpoint_fails(database, session)
        with pytest.raises(DatabaseUnavailable) as raised:
            for _ in range(50):
                fill(session, 20_000)
        assert raised.value.code in ("fatal", "io")
        assert count(session) >= rows
    fill(session, 1)
    assert count(session) >= rows


def test_a_session_that_saw_the_old_instance_fail_does_not_invalidate_the_new_one(database: Database) -> None:
    one, other = database.session(), database.session()
    one.execute("create table t (i bigint, s varchar)")
    stale = database.generation
    database.invalidate(stale)
    assert count(one) == 0
    reopened = database.generation
    database.invalidate(stale)
    assert (count(other), database.generation) == (0, reopened)


def test_a_commit_that_finds_too_little_memory_raises_the_limit_instead_of_failing_for_ever(tmp_path: Path) -> None:
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=1, memory_mb=16))
    session = database.session()
    session.execute("create table t (i bigint, s varchar)")
    big = pa.table({"i": [1], "s": ["x" * 15_000_000]})
    logged = 0
    for _ in range(12):
        try:
            with session.relation(big=big), session.transaction():
                session.execute("insert into t from big")
            logged += 1
        except DatabaseUnavailable as error:
            assert error.code == "memory"
    assert database.memory_mb is not None and database.memory_mb > 16
    assert logged >= 6
    assert count(session) == logged
    database.close()


def test_a_reader_that_runs_out_of_memory_is_told_so_and_nothing_else_is_touched(database: Database) -> None:
    session = database.session()
    session.execute("create table t (i bigint, s varchar)")
    fill(session, 10)
    session.execute("set memory_limit = '32MB'")
    with pytest.raises(DatabaseUnavailable) as raised:
        session.rows("select len(list(hash(i))) from range(5000000) r(i)")
    assert raised.value.code == "memory"
    assert database.memory_mb == 256
    assert count(session) == 10


def test_a_wrong_statement_is_not_taken_for_an_outage(database: Database) -> None:
    failures: list[Callable[[], object]] = [
        lambda: database.session().rows("select"),
        lambda: database.session().rows("from nowhere"),
        lambda: database.session().rows("select 'a'::integer"),
    ]
    for failing in failures:
        with pytest.raises(duckdb.Error):
            failing()

"""Snapshots: consistent, named only when whole, readable by programs that know nothing of us; old ones go when closed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import redis
from attrs import evolve
from capture_room import wait_until
from replicator_process import Replicator, until
from service_room import ServiceRoom

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.errors import DatabaseUnavailable, UsageError
from replicator.service_job import SNAPSHOT, Jobs
from replicator.service_snapshot import Snapshots, SnapshotTask
from replicator.snapshot_files import SnapshotDirectory

TRADES = """
[[tables]]
name = "trades"
key = ["trade_id"]
[tables.columns]
trade_id = "VARCHAR"
n = "BIGINT"
price = "DECIMAL(38,10)"
side = "ENUM('buy', 'sell')"
at = "TIMESTAMPTZ"
at_ns = "TIMESTAMP_NS"
extra = "JSON"
bytes = "BLOB"
"""
ROW = (
    '{{"trade_id":"T{key}","n":{n},"price":"1234567890123456789.0123456789","side":"buy","at":"2026-01-01T00:00:00Z",'
    '"at_ns":"2026-01-01T00:00:00.123456789","extra":{{"a":[1.10]}},"bytes":"AAE="}}'
)


@pytest.fixture(scope="module")
def room(_valkey: Valkey, _clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceRoom]:
    """One for all tests: five hundred changes of a hundred keys, ten of them deleted, and what the tests add."""
    with redis.Redis.from_url(_valkey.start().url) as client:
        client.flushall()
    _clickhouse.start().execute("create database snapshots")
    room = ServiceRoom(
        directory=tmp_path_factory.mktemp("snapshots"),
        redis_url=_valkey.url,
        server=_clickhouse,
        database="snapshots",
        tables=TRADES,
        sections="[snapshots]\nkeep = 2\n",
    ).start()
    write(room, 1, 490)
    pipe = room.client.pipeline()
    for n in range(10):
        pipe.xadd("trades", {"op": "d", "data": f'{{"trade_id":"T{n}"}}'})
    pipe.execute()
    room.wait_logged(500)
    yield room
    room.stop()
    room.client.close()
    _clickhouse.execute("drop database snapshots sync")


def write(room: ServiceRoom, first: int, last: int) -> None:
    pipe = room.client.pipeline(transaction=False)
    for n in range(first, last + 1):
        pipe.xadd("trades", {"data": ROW.format(key=n % 100, n=n)})
    pipe.execute()


def snapshots(room: ServiceRoom) -> Snapshots:
    database, pins = room.service.database, room.service.changelog.pins
    return Snapshots(service=room.service, jobs=Jobs(database=database, stop=room.service.stop, pins=pins))


def take(room: ServiceRoom, log_changes: int = 0) -> dict[str, Any]:
    return snapshots(room).run(SnapshotTask(log_changes=log_changes, actor="test"))


READ = """
import duckdb, sys
with duckdb.connect(sys.argv[1], read_only=True) as file:
    file.execute("set timezone = 'UTC'")
    for sql in sys.argv[2:]:
        print(file.execute(sql).fetchall())
"""


def read(path: str, *queries: str) -> list[str]:
    """What another process reads there."""
    done = subprocess.run([sys.executable, "-c", READ, path, *queries], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


ALL = "select trade_id, n, price, side::varchar, at_ns::varchar, extra, bytes, _offset, _version, _op from {} order by all"


def test_it_holds_what_the_file_shows_as_of_one_offset(room: ServiceRoom) -> None:
    done = take(room, log_changes=200)
    queries = [ALL.format("trades"), ALL.format("trades_log where _offset > 300")]
    here = [str(room.rows(sql)) for sql in queries]
    assert read(done["path"], *queries) == here
    assert (done["head_offset"], done["log_first_offset"]) == (500, 301)
    counts = read(
        done["path"],
        "select count(*) from trades",
        "select count(*) from trades_state",
        "select min(_offset), max(_offset), count(*) from trades_log",
        "select min(log_offset), count(*) from change_log",
        "select value from meta where key in ('head_offset', 'log_first_offset', 'pipeline') order by key",
        "select storage_version from (select split_part(tags['storage_version'], '+', 1) as storage_version "
        "from duckdb_databases() where not internal)",
    )
    assert counts[:5] == ["[(90,)]", "[(90,)]", "[(301, 500, 200)]", "[(301, 200)]", "[('500',), ('301',), ('main',)]"]
    assert "v1.0.0" in counts[5]
    assert Path(done["path"]).stat().st_mode & 0o777 == 0o600
    assert room.rows("select action, actor from operator_actions") == [("snapshot", "test")]


def test_without_a_part_of_the_log_it_does_not_pretend_to_have_one(room: ServiceRoom) -> None:
    tables = read(take(room)["path"], "select table_name from information_schema.tables order by 1")
    assert tables == ["[('meta',), ('trades',), ('trades_state',)]"]


def test_changes_logged_meanwhile_are_in_none_of_its_tables(room: ServiceRoom) -> None:
    """The rest between two steps is where others append."""
    maker = room.service.keeping.snapshots
    appended = threading.Event()

    head = room.service.changelog.head

    def rest(_: float) -> None:
        if not appended.is_set():
            appended.set()
            write(room, 501, 600)
            room.wait_logged(head + 100)

    session = room.service.database.session()
    taken = evolve(maker, rest=rest).take(session, log_changes=1_000)
    session.close()
    assert appended.is_set() and taken.head_offset == head
    found = read(
        str(taken.file.path),
        "select max(_offset), count(*) from trades",
        "select max(_offset), count(*) from trades_log",
        "select max(log_offset), count(*) from change_log",
    )
    assert found == ["[(490, 90)]", f"[({head}, {head})]", f"[({head}, {head})]"]


def test_old_ones_go_but_not_while_a_program_has_them_open(room: ServiceRoom) -> None:
    first = take(room)
    reader = subprocess.Popen(
        [sys.executable, "-c", "import duckdb,sys; c=duckdb.connect(sys.argv[1], read_only=True); print(1, flush=True); "
         "sys.stdin.read()", first["path"]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert reader.stdout is not None
    reader.stdout.readline()
    names = [Path(take(room)["path"]).name for _ in range(2)]
    kept = [Path(file["path"]).name for file in snapshots(room).listed()]
    assert kept == [*reversed(names), Path(first["path"]).name]
    reader.communicate()
    last = take(room)
    assert last["removed"] == [names[0], Path(first["path"]).name]
    assert room.service.keeping.snapshot_status().newest == last["path"]


def test_what_a_killed_one_left_is_removed_and_strangers_are_not(room: ServiceRoom) -> None:
    directory = room.service.keeping.snapshots.directory
    take(room)
    left = [directory.making / "main@20260101T000000.duckdb", directory.making / "main@20260101T000000.duckdb.wal"]
    strangers = [directory.path / "main-backup.duckdb", directory.path / "main-2-20260101T000000.000Z.duckdb",
                 directory.path / "notes.txt", directory.making / "other@20260101T000000.duckdb"]  # fmt: skip
    for path in (*left, *strangers):
        path.write_text("x")
    for _ in range(3):
        take(room)
    assert not any(path.exists() for path in left) and all(path.exists() for path in strangers)
    assert len(directory.published()) == 2


def test_one_that_fails_leaves_nothing_and_the_service_whole(room: ServiceRoom) -> None:
    maker = room.service.keeping.snapshots

    def fail(_: float) -> None:
        raise UsageError("no more")

    session, before = room.service.database.session(), maker.directory.published()
    with pytest.raises(UsageError, match="no more"):
        evolve(maker, rest=fail).take(session)
    session.close()
    assert maker.directory.published() == before
    head = room.service.changelog.head
    write(room, 501, 510)
    room.wait_delivered(head + 10)
    assert take(room)["head_offset"] == head + 10


def test_a_directory_or_disk_that_will_not_do_is_named(room: ServiceRoom) -> None:
    maker, session = room.service.keeping.snapshots, room.service.database.session()
    (room.directory / "file").write_text("")
    wrong = evolve(maker, directory=SnapshotDirectory(path=room.directory / "file", pipeline="main"))
    with pytest.raises(DatabaseUnavailable, match="snapshots cannot be written"):
        wrong.take(session)
    with pytest.raises(DatabaseUnavailable, match="min_free_bytes"):
        evolve(maker, free_bytes_min=10**18).take(session)
    session.close()


def test_a_directory_shared_by_setgid_lets_its_group_read(room: ServiceRoom) -> None:
    directory = room.service.keeping.snapshots.directory.path
    take(room)
    directory.chmod(0o2750)
    try:
        assert Path(take(room)["path"]).stat().st_mode & 0o777 == 0o640
    finally:
        directory.chmod(0o700)


def test_only_one_is_taken_at_a_time(room: ServiceRoom) -> None:
    jobs = snapshots(room).jobs
    begun, go_on = threading.Event(), threading.Event()
    jobs.start(SNAPSHOT, lambda *_: begun.set() or {} if go_on.wait(20) else {})
    with pytest.raises(UsageError, match="snapshot is running"):
        Snapshots(service=room.service, jobs=jobs).run(SnapshotTask())
    go_on.set()
    wait_until(begun.is_set, "the first to end")


def test_names_sort_by_time_and_tell_it(tmp_path: Path) -> None:
    directory = SnapshotDirectory(path=tmp_path, pipeline="main")
    at = datetime(2026, 11, 26, 2, 15, 30, 123_000, tzinfo=UTC)
    for step in (2, 0, 1):
        when = at + timedelta(milliseconds=step)
        made = directory.prepare(when)
        duckdb.connect(str(made)).close()
        directory.publish(made, when)
    files = directory.published()
    assert [file.path.name for file in files] == sorted((file.path.name for file in files), reverse=True)
    assert files[-1].path.name == "main-20261126T021530.123Z.duckdb" and files[-1].taken_at == at


def test_the_service_takes_them_on_schedule_and_on_request(replicator: Replicator) -> None:
    replicator.configure(
        sections='[pipeline]\nname = "kept"\n[serve]\nport = 0\n[snapshots]\ninterval_sec = 3600\nkeep = 1'
    )
    replicator.start()
    directory = replicator.directory / "data" / "snapshots"
    until(lambda: replicator.events("snapshot_taken"), "one on schedule")
    done = replicator.command("snapshot", "--json", "--log-changes", "10")
    assert done.code == 0 and Path(done.json["path"]).parent == directory
    assert replicator.http("GET", "/api/v1/snapshots", token="read").json()
    assert replicator.http("POST", "/api/v1/snapshot", token="read", body={}).status == 403
    assert replicator.command("status", "--json").json["snapshots"]["kept"] >= 1
    replicator.stop()
    assert Path(replicator.command("snapshot", "--json").json["path"]).exists()  # without a service

"""Counted guards of the hot path: what is done once per entry, per commit, per batch. No clock is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from capture_room import CaptureRoom, wait_until
from contract.fakes import LEDGER, FakeClickHouse, InlinePool
from log_room import LogRoom

from replicator import capture
from replicator.admit import Admission
from replicator.catalog import Catalog
from replicator.config import TableConfig, migrations_dir
from replicator.database import Database, DatabaseOptions
from replicator.decode import decode
from replicator.model import BatchLimits, StreamPosition
from replicator.source import ENTRIES_MAX, RedisSource, SourceOptions

COLUMNS = {"id": "VARCHAR", "price": "DECIMAL(18,6)", "at": "TIMESTAMP"}


def add(client: redis.Redis, rows: int, flat: bool = False) -> None:
    for first in range(0, rows, 10_000):
        pipe = client.pipeline(transaction=False)
        for n in range(first, min(rows, first + 10_000)):
            fields = {"id": f"T{n}", "price": f"{n % 100}.25", "at": "2026-11-23T10:00:00Z"}
            text = '{{"id":"{id}","price":"{price}","at":"{at}"}}'.format(**fields)
            pipe.execute_command(
                "XADD", "trades", "*", *([p for f in fields.items() for p in f] if flat else ["data", text])
            )
        pipe.execute()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=1))
    database.migrate(migrations_dir() / "duckdb")
    yield database
    database.close()


def calls_of(work: Callable[[], Any]) -> int:
    """How many Python and C functions are called."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "undeclared"])
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "json"])
def test_no_function_is_called_for_each_entry(
    database: Database, client: redis.Redis, redis_url: str, typed: bool, flat: bool
) -> None:
    add(client, 5_000, flat)
    tables = [TableConfig(name="trades", stream="trades", key=("id",), columns=COLUMNS)] if typed else []
    catalog = Catalog.open(database, tables, ("trades",), 0)
    admission = Admission(session=database.session(), catalog=catalog)
    source = RedisSource(SourceOptions(url=redis_url))
    position = {"trades": StreamPosition(stream="trades")}

    def capture_once(count: int) -> int:
        source._count = count
        (read,), _ = source.read(position, block_seconds=1)
        admitted = admission.admit(decode(read, {}))
        assert admitted.rejections.num_rows == 0
        return admitted.changes.num_rows

    assert capture_once(200) == 200
    few, many = calls_of(lambda: capture_once(200)), calls_of(lambda: capture_once(5_000))
    source.close()
    assert many - few < 500  # a longer reply comes in more pieces


def test_a_backlog_is_committed_in_whole_row_groups(
    tmp_path: Path, client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "GATHER_SECONDS_MAX", 60.0)
    rows = capture.ROW_GROUP_ROWS + 10_000
    add(client, rows)
    room = CaptureRoom(path=tmp_path / "log.duckdb", url=redis_url).start()
    try:
        room.wait_logged(capture.ROW_GROUP_ROWS)
        assert room.capture.changelog.head in (capture.ROW_GROUP_ROWS, rows)
        wait_until(lambda: room.capture.progress.changes_appended == rows, "all in the log")
        (commits,) = room.rows("select count(distinct logged_at) from change_log")[0]
        assert commits == 2
        assert room.database.wal_bytes() < 5 << 20  # the row group went around the WAL
        (groups,) = room.rows("select count(distinct row_group_id) from pragma_storage_info('change_log')")[0]
        assert groups == 2
    finally:
        room.stop()


def test_a_full_reply_makes_few_reads(client: redis.Redis, redis_url: str) -> None:
    add(client, 3 * ENTRIES_MAX)
    source, sizes = RedisSource(SourceOptions(url=redis_url)), []
    position = StreamPosition(stream="trades")
    while sum(sizes) < 3 * ENTRIES_MAX:
        (read,), _ = source.read({"trades": position}, block_seconds=1)
        sizes.append(len(read.ids))
        position = StreamPosition(stream="trades", last_entry_id=read.ids[-1].decode())
    source.close()
    assert max(sizes) == ENTRIES_MAX and len(sizes) <= 6


def test_a_batch_is_one_insert_and_a_cycle_one_line_in_the_ledger(tmp_path: Path) -> None:
    server, records = FakeClickHouse(), []
    server.meet = lambda table, send: records.append(table)
    room = LogRoom(path=tmp_path / "log.duckdb", sink=server, pool=InlinePool())
    room.limits = BatchLimits(rows_max=1_000, age_seconds_max=0)
    room.append(10_000)
    room.until(lambda: room.deliver.checkpoint == 10_000)
    room.stop.set()
    room.database.close()
    sizes = [len(part.offsets) for part in server.parts["change_log"]]
    assert sum(sizes) == 10_000 and max(sizes) == 1_000
    assert len(sizes) == records.count("change_log") <= 11  # batches are cut where windows of offsets end
    assert records.count(LEDGER) <= len(sizes)


def test_what_is_committed_is_held_once_while_duckdb_works(
    tmp_path: Path, client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(client, 500)
    room = CaptureRoom(path=tmp_path / "log.duckdb", url=redis_url)
    held: list[int] = []

    def count_rows(self: capture.Capture, chunks: list[Any], append: Any, logged: Any) -> None:
        held.append(sum(chunk.rows for chunk in chunks))
        counted(self, chunks, append, logged)

    counted = capture.Capture._count
    monkeypatch.setattr(capture.Capture, "_count", count_rows)
    room.start()
    try:
        room.wait_logged(500)
    finally:
        room.stop()
    assert held and not any(held)

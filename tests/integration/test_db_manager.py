"""DuckDBManager beside a running service, on the file it left, and on a snapshot: the same answers, and nothing written."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import redis
import structlog
from every_type import sorts
from replicator_process import Replicator

from replicator import DuckDBManager
from replicator.db_manager_managed import TableManaged
from replicator.db_manager_ways import Way
from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import DatabaseUnavailable, SinkUnavailable, UsageError
from replicator.query_question import EntryNotCaptured

TABLES = """
[[tables]]
name = "trades"
key = ["trade_id"]
[tables.columns]
trade_id = "VARCHAR"
price = "DECIMAL(18,6)"
quantity = "BIGINT"
executed_at = "TIMESTAMP"
zoned = "TIMESTAMPTZ"
"""
ROW = {
    "trade_id": "T1",
    "price": "189.250001",
    "quantity": "9007199254740993",
    "executed_at": "2026-03-02T14:30:01.000001Z",
    "zoned": "2026-03-02T14:30:01.000001+02:00",
}
EXPECTED = (
    "T1",
    Decimal("189.250001"),
    9007199254740993,
    datetime(2026, 3, 2, 14, 30, 1, 1),
    datetime(2026, 3, 2, 12, 30, 1, 1, tzinfo=UTC),
)
EXTREMES = (
    "select (-170141183460469231731687303715884105727)::hugeint h, 340282366920938463463374607431768211455::uhugeint u,"
    " 0.12345678901234567890123456789012345678::decimal(38,38) d, 'nan'::double f, '\\x00\\xff'::blob b,"
    " uuid '00000000-0000-0000-0000-000000000001' i, 'infinity'::date e, time '10:00:00.123456' t, '24:00:00'::time m,"
    " timestamp_ns '2020-01-01 00:00:00.123456789' n, '-infinity'::timestamp y, interval '3 month 2 days 5 seconds' v,"
    " [1::hugeint, null] l, [1, 2]::int[2] a, {'a': 1, 'b': [date 'infinity']} s, map {'a': interval 1 day} p"
)
ENDLESS = "select count(*) from range(10000000) a, range(10000000) b where a.range + b.range = 3"
ASK = "select trade_id, price, quantity, executed_at, zoned from trades order by 1"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    logging.getLogger("replicator").setLevel(logging.NOTSET)


@pytest.fixture
def room(replicator: Replicator) -> Replicator:
    """The environment in a ``.env``, where this process's managers find it as well."""
    dotenv = replicator.directory / ".env"
    dotenv.write_text("\n".join(f'{name}="{value}"' for name, value in replicator.environment.items()))
    dotenv.chmod(0o600)
    replicator.configure(sections=f"[serve]\nport = 0\n{TABLES}")
    return replicator


def reader(room: Replicator) -> DuckDBManager:
    profile = room.config_dir / "duckdb_python_config.toml"
    if not profile.exists():
        profile.write_text("[sync]\nbatch_size = 50\n[error_handling]\nretry_backoff_sec = [5, 5]\n")
    return DuckDBManager(profile)


def writer(room: Replicator) -> DuckDBManager:
    return DuckDBManager(room.config_dir / "duckdb_rust_config.toml")


def wrote(source: redis.Redis, **changed: str) -> str:
    return source.xadd("trades", {"data": json.dumps(ROW | changed)}).decode()


def test_a_reader_follows_the_service_the_file_and_the_snapshot(room: Replicator, source: redis.Redis) -> None:
    with reader(room) as manager:
        assert manager.config["database"]["path"] == manager.db_path == str(room.database_path)
        with pytest.raises(DatabaseUnavailable, match="no database"):
            manager.execute_query("select 1")
        assert manager.reads_from is None

        room.start()
        entry = wrote(source)
        limits = {"min_entry_id": ("trades", entry)}
        assert manager.execute_query(ASK, **limits) == [EXPECTED]
        assert manager.reads_from.way is Way.SERVICE
        assert manager.reads_from.age_seconds == 0
        _answers_alike(manager)
        _types_are_python_s_own(manager)
        _crowd(manager)

        room.kill()
        assert manager.execute_query(ASK, **limits) == [EXPECTED]
        assert manager.reads_from.way is Way.FILE
        assert 0 <= manager.reads_from.age_seconds < 600
        _answers_alike(manager)
        _types_are_python_s_own(manager)
        with pytest.raises(EntryNotCaptured):
            manager.execute_query(ASK, min_entry_id=("trades", "9999999999999-0"))

        room.start()  # a reader that has read the file does not keep the service from it
        assert manager.execute_query(ASK) == [EXPECTED]
        assert manager.reads_from.way is Way.SERVICE
        taken = room.command("snapshot")
        assert taken.code == 0, taken.err
        assert room.stop() == 0

        room.database_path.rename(room.directory / "gone.duckdb")
        assert manager.execute_query(ASK) == [EXPECTED]
        assert manager.reads_from.way is Way.SNAPSHOT
        assert "snapshot" in str(manager.reads_from) and "s old" in str(manager.reads_from)
    log = (room.directory / "data" / "replicator_reader.log").read_text()
    assert [json.loads(line)["way"] for line in log.splitlines() if '"reading_from"' in line] == [
        "service", "file", "service", "snapshot",
    ]  # fmt: skip


def _answers_alike(manager: DuckDBManager) -> None:
    """Each way of asking, and what is refused, whichever way the answer comes."""
    table = manager.query_arrow("select quantity, price from trades where trade_id = ?", ["T1"])
    assert table.to_pylist() == [{"quantity": 9007199254740993, "price": Decimal("189.250001")}]
    frame = manager.query_df("select quantity, price, null::bigint n from trades")
    assert frame.to_dict("records") == [{"quantity": 9007199254740993, "price": Decimal("189.250001"), "n": None}]
    assert manager.conn.execute("select 42 a, 'x' b").fetchall() == [(42, "x")]
    assert manager.conn.execute("from range(3)").fetchone() == (0,)
    assert (manager.conn.fetchmany(1), manager.conn.fetchall()) == ([(1,)], [(2,)])
    assert [column[:2] for column in manager.conn.description] == [("range", "BIGINT")]
    assert manager.execute_query("select sum(9223372036854775807), $a", {"a": "z"}) == [(9223372036854775807, "z")]
    for sql in (
        "insert into trades values ('x')",
        'DROP TABLE "Trades_Log"',
        "with d as (delete from main.trades) from d",
    ):
        with pytest.raises(TableManaged, match=r"stream trades.*XADD trades"):
            manager.execute_query(sql)
    with pytest.raises(TableManaged, match="change_log is the replicator's own record"):
        manager.execute_query("update change_log set key = 'x'")
    for sql in ("create table mine (a int)", "select * from read_csv('/etc/hosts')", "selec", "select nothing"):
        with pytest.raises(UsageError):
            manager.execute_query(sql)
    with pytest.raises(UsageError, match=r"longer than 0.3 s"):
        manager.execute_query(ENDLESS, timeout_seconds=0.3)
    with pytest.raises(UsageError, match="more than 5 rows"):
        manager.execute_query("from range(10)", max_rows=5)
    assert manager.execute_query(ASK) == [EXPECTED]


def _types_are_python_s_own(manager: DuckDBManager) -> None:
    """Each type's limits as literals, so that only the way of the answer is under test."""
    declared = ", ".join(f"null::{sort.declared} as {name}" for name, sort in sorts().items())
    assert manager.execute_query(f"select {declared}") == [(None,) * len(sorts())]
    with duckdb.connect() as connection:
        own = connection.execute(EXTREMES).fetchall()
    assert repr(manager.execute_query(EXTREMES)) == repr(own)


def test_many_threads_ask_one_manager(room: Replicator) -> None:
    with writer(room) as owner, reader(room) as beside:
        _crowd(owner)
        _crowd(beside)
        owner.close()
        _crowd(beside)
        assert beside.reads_from.way is Way.FILE


def _crowd(manager: DuckDBManager) -> None:
    found: list[bool] = []

    def ask(number: int) -> None:
        for _ in range(3):
            answer = manager.conn.execute("select ? n, count(*) from range(1000)", [number])
            found.append(answer.fetchall() == [(number, 1000)] and manager.conn.fetchall() == [])

    threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 24


READING = """
import sys
from replicator import DuckDBManager
with DuckDBManager(sys.argv[1]) as manager:
    while manager.execute_query("select count(*) from change_log") and str(manager.reads_from.way) == "file":
        print("read", flush=True)
"""


def test_a_service_starts_while_programs_read_the_file(room: Replicator) -> None:
    writer(room).close()
    reader(room).close()
    profile = room.config_dir / "duckdb_python_config.toml"
    program = subprocess.Popen([sys.executable, "-c", READING, profile], stdout=subprocess.PIPE)
    try:
        assert program.stdout.readline() == b"read\n"  # type: ignore[union-attr]
        room.start()
        assert program.wait(90) == 0, "it went over to the service by itself"
    finally:
        program.kill()
        program.communicate()


def test_the_read_write_manager_owns_the_file_when_no_service_does(room: Replicator, source: redis.Redis) -> None:
    with writer(room) as manager:
        assert manager.execute_query("select count(*) from trades") == [(0,)]  # made, migrated, with its tables
        _refuses_ours(manager)
        assert manager.execute_query("create table mine (a int, b decimal(9,2))") == []
        assert manager.execute_query("insert into mine values (?, ?) returning b", [1, Decimal("1.50")]) == [
            (Decimal("1.50"),)
        ]
        assert manager.execute_query("insert into mine select 2, 2; update mine set a = a + 1") == [(2,)]
        with pytest.raises(UsageError):
            manager.execute_query("insert into mine values (7, 7); insert into mine values ('x', 1)")
        assert manager.execute_query("select a from mine order by a") == [(2,), (3,)], "all of a call, or nothing"
        with reader(room) as beside:
            assert beside.execute_query("select max(b) from mine") == [(Decimal("2.00"),)]
        refused = room.command("status")
        assert (refused.code, "in use by" in refused.err) == (3, True), "the lock is still ours"
    room.start()
    entry = wrote(source)
    with writer(room) as manager:
        assert manager.execute_query(ASK, min_entry_id=("trades", entry)) == [EXPECTED]
        _refuses_ours(manager)
        with pytest.raises(UsageError, match="only a SELECT"):
            manager.execute_query("drop table mine")
        assert room.stop() == 0
        assert manager.execute_query("drop table mine") == []
        assert manager.execute_query(ASK) == [EXPECTED]


def _refuses_ours(manager: DuckDBManager) -> None:
    for sql, name in {
        "delete from trades": "trades",
        "create or replace view main.trades as select 1": "trades",
        "insert into trades_state select 1": "trades_state",
        "create table x as with d as (delete from change_log returning *) from d": "change_log",
        "merge into checkpoints using mine on true when matched then delete": "checkpoints",
        "create index i on change_log (key)": "change_log",
        "truncate failed_syncs": "failed_syncs",
        "drop sequence failed_syncs_id": "failed_syncs_id",
    }.items():
        with pytest.raises(TableManaged, match=rf"^{name} is"):
            manager.execute_query(sql)
    for sql in ("copy trades to '/tmp/x'", "attach ':memory:' as x", "set threads = 1", "begin"):
        with pytest.raises(UsageError):
            manager.execute_query(sql)


def test_syncing_delivers_now_and_reports(
    room: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    slow = "[sync]\nsync_interval_sec = 600\nbatch_size = 40\n[error_handling]\nretry_backoff_sec = [5, 5]\n"
    room.write("duckdb_rust_config.toml", slow.replace("batch_size = 40\n", ""))
    room.start()
    for number in range(120):
        entry = wrote(source, trade_id=f"T{number}")
    with reader(room) as manager:
        manager.execute_query("select 1", min_entry_id=("trades", entry))
        report = manager.sync_to_clickhouse()
        assert report and (report.head_offset, report.checkpoint_offset, report.from_offset) == (120, 120, 0)
        assert (report.through, report.parked_rows, report.waits_for) == ("service", 0, None)
        assert _delivered(clickhouse_server, clickhouse_database) == 120
        [(largest, batches)] = manager.execute_query("select max(row_count), count(*) from sync_batches")
        assert (largest, batches) == (50, 3), "the reader's batch_size holds for what was not frozen"

        for number in range(100):
            entry = wrote(source, trade_id=f"T{number}")
        manager.execute_query("select 1", min_entry_id=("trades", entry))
        assert room.stop() == 0
        with pytest.raises(SinkUnavailable, match="replicator run"):
            manager.sync_to_clickhouse()
    room.write("duckdb_rust_config.toml", slow)
    with writer(room) as manager:
        report = manager.sync_to_clickhouse()
        assert (report.delivered, report.through, report.checkpoint_offset) == (True, "file", 220)
        assert manager.execute_query("select max(row_count) from sync_batches where first_offset > 120") == [(40,)]
    assert _delivered(clickhouse_server, clickhouse_database) == 220


def _delivered(server: ClickHouse, database: str) -> int:
    return int(server.execute(f"select count() from {database}.trades_log"))


def test_the_documents_files_and_usage_work_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Trade Distribution System writes them, with the variables that its files need on another system."""
    config = tmp_path / "system" / "config"
    config.mkdir(parents=True)
    for name, text in DOCUMENT.items():
        (config / name).write_text(text)
        (config / name).chmod(0o600)
    path = str(tmp_path / "trade_data.duckdb")
    monkeypatch.setenv("DUCKDB_PATH", path)
    monkeypatch.setenv("DUCKDB_PYTHON_LOG", str(tmp_path / "python.log"))
    monkeypatch.setenv("DUCKDB_RUST_LOG", str(tmp_path / "rust.log"))
    with DuckDBManager(str(config / "duckdb_rust_config.toml")) as manager:
        assert manager.config["sync"]["backup_interval_sec"] == 600
        manager.execute_query("CREATE TABLE notes (id INTEGER, price DECIMAL(18,6))")
        manager.execute_query("INSERT INTO notes VALUES (1, 189.25)")
    manager = DuckDBManager(str(config / "duckdb_python_config.toml"))
    assert manager.config["database"]["path"] == manager.db_path == path
    assert manager.config["sync"]["batch_size"] == 50
    assert manager.config["error_handling"]["retry_backoff_sec"] == [10, 30, 60, 120]
    assert manager.execute_query("SELECT * FROM notes") == [(1, Decimal("189.250000"))]
    assert manager.conn.execute("SELECT count(*) FROM change_log").fetchall() == [(0,)]
    with pytest.raises(SinkUnavailable):
        manager.sync_to_clickhouse()
    manager.close()
    manager.close()


DOCUMENT = {
    "duckdb_rust_config.toml": """
[database]
path = "C:/TradeSystem/Data/trade_data.duckdb"
read_only = false
[performance]
max_threads = 4
cache_size_mb = 256
temp_directory = "C:/TradeSystem/Temp"
[logging]
log_level = "INFO"
log_path = "C:/TradeSystem/Logs/duckdb_rust.log"
[sync]
clickhouse_endpoint = "http://localhost:8123"
backup_interval_sec = 600
max_retry_attempts = 5
[error_handling]
failed_sync_table = "failed_syncs"
retry_backoff_sec = [5, 15, 30, 60]
""",
    "duckdb_python_config.toml": """
[database]
path = "C:/TradeSystem/Data/trade_data.duckdb"
read_only = true
[performance]
cache_size_mb = 128
[logging]
log_level = "INFO"
log_path = "C:/TradeSystem/Logs/duckdb_python.log"
[sync]
clickhouse_endpoint = "http://localhost:8123"
batch_size = 50
sync_interval_sec = 300
[error_handling]
failed_sync_table = "failed_syncs"
retry_backoff_sec = [10, 30, 60, 120]
""",
    "secrets.toml": """
[auth]
clickhouse_user = "admin"
clickhouse_password = "your-secure-password"
[encryption]
master_key = "YOUR-ENCRYPTION-KEY-HERE"
""",
}


def test_the_arrow_answer_says_what_duckdb_called_its_types(room: Replicator) -> None:
    with writer(room) as manager:
        table = manager.query_arrow("select 1::uhugeint a, 2::decimal(9,2) b")
    assert [field.metadata[b"duckdb_type"] for field in table.schema] == [b"UHUGEINT", b"DECIMAL(9,2)"]
    assert table.schema.field("a").type == pa.string()

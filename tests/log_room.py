"""A log of small changes, and deliver upon it: what the tests of delivery share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa
from attrs import define, evolve, field

from replicator.capture import CaptureProgress
from replicator.changelog import Append, ChangeLog
from replicator.database import Database, DatabaseOptions
from replicator.deliver import Deliver, DeliverSettings
from replicator.deliver_pool import WorkerPool
from replicator.deliver_record import Recorder
from replicator.deliver_work import Sink, Worker
from replicator.lanes import ROW_HASH, Lane, generic_lane
from replicator.ledger import Ledger
from replicator.model import CHANGE_SCHEMA, REJECTION_SCHEMA, BatchLimits, Checksum
from replicator.retry import Ladder

MIGRATIONS = Path(__file__).resolve().parents[1] / "migrations"

DUE = """
with each as (select if(schema_version = 0, 'change_log', table_name) as lane, log_offset from change_log)
select lane, each.log_offset from each join checkpoints k on k.table_name = lane and each.log_offset <= k.log_offset
where not exists (from failed_syncs f where f.table_name = lane and status in ('open', 'discarded')
                  and each.log_offset between first_offset and last_offset)
"""
"""What promise 3 says is in the sink: at or below its lane's checkpoint, and not parked."""


def changes(ids: Sequence[int], *, table: str = "trades", payload: str = "") -> pa.Table:
    """Decoded changes of one stream, as capture appends them."""
    rows = len(ids)
    columns = {
        "table_name": [table] * rows,
        "op": ["u"] * rows,
        "key": [f"K{i}" for i in ids],
        "payload": [payload or f'{{"n":{i}}}' for i in ids],
        "schema_version": [0 if table == "trades" else 1] * rows,
        "producer_schema": [None] * rows,
        "event_id": [None] * rows,
        "event_at": [None] * rows,
        "stream": [table] * rows,
        "stream_epoch": [1] * rows,
        "entry_id": [f"{i}-0" for i in ids],
        "entry_row": [0] * rows,
    }
    return pa.table(columns, schema=CHANGE_SCHEMA)


@cache
def _scratch() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


def hashed_changes(offsets: Sequence[int]) -> tuple[pa.Table, Checksum]:
    """The rows that the generic lane would send for these offsets, with their hashes, and the checksum of them."""
    connection = _scratch().cursor()
    connection.execute((MIGRATIONS / "duckdb" / "0001_log.sql").read_text().partition("create table stream")[0])
    rows = changes(offsets).append_column("log_offset", pa.array(offsets, pa.int64()))
    connection.register("rows", rows)
    at = datetime(2026, 11, 23, 10, 0, 0)
    connection.execute(
        "insert into change_log by name select *, log_offset::ubigint as version, ?::timestamp as logged_at from rows",
        [at],
    )
    sql = generic_lane().batch_sql
    table = connection.sql(sql, params={"first": 0, "last": 1 << 40}).to_arrow_table().combine_chunks()
    connection.execute("drop table change_log")
    hashes = table[ROW_HASH].to_pylist()
    xor = 0
    for each in hashes:
        xor ^= each
    checksum = Checksum(rows=len(hashes), sum=sum(hashes) % (1 << 64), xor=xor)
    return table.append_column("_pipeline", pa.array(["main"] * len(hashes))), checksum


def lanes(name: str, schema_version: int) -> Lane:
    """The generic lane, and for any other table one like it, over that table's changes."""
    generic = generic_lane()
    if name == generic.name:
        return generic
    where = f"table_name = '{name}' and schema_version = {schema_version}"
    sql = generic.batch_sql.replace(generic.where, where)
    assert sql != generic.batch_sql
    return evolve(generic, name=name, target=name, batch_sql=sql, where=where, schema_version=schema_version)


@define
class LogRoom:
    """One DuckDB file with a log, and the parts of deliver over a sink."""

    path: Path
    sink: Sink
    pool: WorkerPool
    limits: BatchLimits = field(factory=lambda: BatchLimits(rows_max=100, age_seconds_max=0))
    ladder: Ladder = field(factory=lambda: Ladder(waits_seconds=[0.01], retries_max=3))
    paused: set[str] = field(factory=set)
    shares: Database | None = None
    """The file as another room has it open, to see what a start would make of it."""
    database: Database = field(init=False)
    log: ChangeLog = field(init=False)
    ledger: Ledger = field(init=False)
    deliver: Deliver = field(init=False)
    progress: CaptureProgress = field(init=False)
    stop: threading.Event = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """As a process does at its start."""
        options = DatabaseOptions(path=self.path, threads=2, memory_mb=256)
        self.database = self.shares or Database.open(options)
        self.database.migrate(MIGRATIONS / "duckdb")
        self.log = ChangeLog.open(self.database)
        self.ledger = Ledger.open(self.database)
        self.progress, self.stop = CaptureProgress(), threading.Event()
        self.progress.release(self.log.head)
        self.deliver = Deliver(
            settings=DeliverSettings(
                lane=lanes,
                limits=lambda: self.limits,
                ladder=lambda: self.ladder,
                paused=lambda lane: lane in self.paused,
            ),
            session=self.database.session(),
            ledger=self.ledger,
            worker=Worker(database=self.database, sink=self.sink, pipeline="main", timeline=lambda: 1, stop=self.stop),
            recorder=Recorder(sink=self.sink, pipeline="main", instance_id="i", timeline=lambda: 1),
            capture=self.progress,
            stop=self.stop,
            pool=self.pool,
        )
        self.deliver.load()

    def reopen(self) -> None:
        """A crash and a start: nothing in memory survives."""
        self.database.close()
        self.open()

    def append(self, rows: int, *, table: str = "trades", payload: str = "") -> None:
        """Log and release changes."""
        session = self.database.session()
        new = changes(range(self.log.head + 1, self.log.head + 1 + rows), table=table, payload=payload)
        self.log.append(session, Append(changes=new, rejections=REJECTION_SCHEMA.empty_table(), positions=()))
        session.close()
        self.progress.release(self.log.head)

    def step(self, turns: int = 1) -> None:
        for _ in range(turns):
            self.deliver.step()

    def until(self, condition: Callable[[], object], turns: int = 5_000) -> None:
        """Turn after turn until it holds; between them what a resting loop would do."""
        for _ in range(turns):
            if condition():
                return
            self.deliver.step()
            self.deliver.rest()
        raise AssertionError(f"not within {turns} turns: {self.rows('from sync_batches')} {self.deliver.lanes}")

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        session = self.database.session()
        try:
            return session.rows(sql)
        finally:
            session.close()

    def checkpoints(self) -> dict[str, int]:
        return {
            str(name): int(str(offset)) for name, offset in self.rows("select table_name, log_offset from checkpoints")
        }

    def failed(self) -> list[tuple[object, ...]]:
        return self.rows(
            "select table_name, first_offset, last_offset, reason, status, error_code from failed_syncs order by first_offset"
        )

    def offsets_of(self, lane: str) -> list[int]:
        where = lanes(lane, 0 if lane == "change_log" else 1).where
        return [
            int(str(offset)) for (offset,) in self.rows(f"select log_offset from change_log where {where} order by 1")
        ]

    def check_promise_three(self, physical: Callable[[str], list[tuple[int, int]]]) -> None:
        """Every offset at or below a checkpoint is in the sink, or in an open or discarded row of failed_syncs."""
        due: dict[str, set[int]] = {}
        for lane, offset in self.rows(DUE):  # one query: it is asked at every turn
            due.setdefault(str(lane), set()).add(int(str(offset)))
        for lane, offsets in due.items():
            missing = offsets - {offset for offset, _ in physical(lane)}
            assert not missing, (lane, sorted(missing), self.checkpoints())

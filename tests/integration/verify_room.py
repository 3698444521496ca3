"""A log and a sink that agree, for tests that break one of them: the service runs on real engines."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from attrs import define, field

from replicator.config import Settings, load_settings
from replicator.database import Session
from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.repair import Repairer
from replicator.repair_plan import RepairReport
from replicator.service import Service
from replicator.state import fold
from replicator.verify import Verifier
from replicator.verify_report import TableResult, VerifyReport, VerifyRequest

PATIENCE_SECONDS = 30.0
SYNC = {"mutations_sync": 2, "lightweight_deletes_sync": 2}
CONFIG = """
[redis]
streams = ["trades", "positions", "notes"]
[clickhouse]
database = "{database}"

[[tables]]
name = "trades"
key = ["trade_id"]
sums = ["quantity", "price"]
by = ["venue"]
[tables.columns]
trade_id = "VARCHAR"
venue = "VARCHAR"
price = "DECIMAL(18,6)"
quantity = "BIGINT"
executed_at = "TIMESTAMP"

[[tables]]
name = "positions"
key = ["account", "symbol"]
[tables.columns]
account = "INTEGER"
symbol = "VARCHAR"
amount = "DECIMAL(20,4)"
weight = "DOUBLE"
"""

Entry = tuple[str, dict[str, str]]
"""(stream, fields) of one change."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """What ``condition`` gave once it was true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def room_settings(path: Path, url: str, server: ClickHouse, database: str, config: str = CONFIG) -> Settings:
    """The configuration of one pipeline with a directory and a database of its own."""
    directory = path / "config"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "replicator.toml").write_text(config.replace("{database}", database))
    (directory / "duckdb_rust_config.toml").write_text(
        f'[database]\npath = "{path / "log.duckdb"}"\n[sync]\nsync_interval_sec = 0.05\n'
    )
    environ = {"CLICKHOUSE_ENDPOINT": server.endpoint, "CLICKHOUSE_USER": server.user}
    environ |= {"CLICKHOUSE_PASSWORD": server.password, "REDIS_URL": url}
    return load_settings(directory, environ=environ)


@define
class VerifyRoom:
    """One pipeline's service, fed through Redis."""

    service: Service
    session: Session
    verifier: Verifier
    repairer: Repairer
    redis: redis.Redis
    logged: int = 0
    random: random.Random = field(factory=lambda: random.Random(7))
    weight_digits: int = 17
    """With up to 5 digits capture recognises a position at sight; else SQL types it, at a tenth of a second a read."""
    dirty: bool = False
    """Whether a test has broken something and not yet mended it."""

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, url: str, server: ClickHouse, database: str, config: str = CONFIG
    ) -> Iterator[VerifyRoom]:
        service = Service.build(room_settings(path, url, server, database, config))
        # a minute's own comparison would send again what a test has lost, out of a log that may have lost rows as well
        service.reconciler.compare_seconds = 86_400
        service.start()
        session = service.database.session()
        verifier = Verifier(session=session, sink=service.sink, catalog=service.catalog, pipeline="main")
        repairer = Repairer(
            session=session,
            sink=service.sink,
            catalog=service.catalog,
            verifier=verifier,
            pipeline="main",
            instance_id=service.instance_id,
            timeline=service.changelog.timeline,
            next_send=lambda: service.ledger.next_send(session),
        )
        producer = redis.Redis.from_url(url)
        try:
            yield cls(service=service, session=session, verifier=verifier, repairer=repairer, redis=producer)
        finally:
            service.shut_down()
            producer.close()

    # ── what happens ──

    def produce(self, entries: Sequence[Entry]) -> None:
        pipe = self.redis.pipeline(transaction=False)
        for stream, fields in entries:
            pipe.xadd(stream, fields)  # type: ignore[arg-type]
        pipe.execute()
        self.logged += len(entries)

    def flow(self, rows: int, keys: int = 200) -> list[Entry]:
        """A realistic flow over few keys: creates, updates, deletes, of two tables and none."""
        return [self._entry(self.random.randrange(keys), place) for place in range(rows)]

    def _entry(self, key: int, place: int) -> Entry:
        kind = self.random.random()
        if kind < 0.1:
            return "notes", {"key": f"N{key}", "data": json.dumps({"text": f"note {place}", "n": place})}
        if kind < 0.4:
            return "positions", self._position(key)
        if self.random.random() < 0.15:
            return "trades", {"op": "d", "key": f"T{key}"}
        trade = {
            "trade_id": f"T{key}",
            "venue": f"V{key % 5}",
            "price": f"{self.random.randrange(10**6)}.{self.random.randrange(10**6):06d}",
            "quantity": self.random.randrange(10**12),
            "executed_at": f"2026-11-23T10:00:00.{place % 10**6:06d}Z",
        }
        return "trades", {"id": str(self.random.getrandbits(60)), "data": json.dumps(trade)}

    def _position(self, key: int) -> dict[str, str]:
        name = {"account": key % 20, "symbol": f"S{key % 7}"}
        if self.random.random() < 0.1:
            return {"op": "d", "data": json.dumps(name)}
        amount = f"{self.random.randrange(10**9)}.{self.random.randrange(10**4):04d}"
        return {
            "data": json.dumps({**name, "amount": amount, "weight": round(self.random.random(), self.weight_digits)})
        }

    def fill(self, rows: int = 3000, keys: int = 200, at_once: int = 1000) -> None:
        """Produce so many changes, delivered in several batches, and wait until they are."""
        for start in range(0, rows, at_once):
            self.produce(self.flow(min(at_once, rows - start), keys))
            self.wait_delivered()

    def wait_delivered(self) -> None:
        def settled() -> bool:
            head = self.service.changelog.head
            if head < self.logged or self.service.deliver.checkpoint < head:
                return False
            return not self.session.rows("select 1 from sync_batches where delivered_at is null limit 1")

        wait_until(settled, f"{self.logged} changes in ClickHouse, not {self.service.deliver.checkpoint}")

    # ── what is broken ──

    def sql(self, statement: str) -> None:
        """Alter something in ClickHouse behind our back."""
        self.service.sink.command(statement, settings=SYNC)

    def log_sql(self, statement: str) -> None:
        """Alter something in DuckDB behind our back."""
        self.session.execute(statement)

    def offsets(self, table: str, count: int, *, op: str = "u", among: str = "") -> list[int]:
        """Some offsets of a table's changes, at random; ``among``: none beyond the last of that table's."""
        sql = (
            "select log_offset from change_log where table_name = ? and op = ? and log_offset <= "
            "(select max(log_offset) from change_log where table_name = ?) order by log_offset"
        )
        return sorted(self.random.sample([at for (at,) in self.session.rows(sql, [table, op, among or table])], count))

    # ── what is found ──

    def verify(self, **request: Any) -> VerifyReport:
        return self.verifier.verify(VerifyRequest(**request))

    def repair(self, *, dry_run: bool = False, **request: Any) -> RepairReport:
        return self.repairer.repair(VerifyRequest(**request), actor="test", dry_run=dry_run)

    def faults(self, report: VerifyReport) -> dict[tuple[str, str, str], list[int]]:
        """By (table, side, kind) the offsets at fault."""
        found: dict[tuple[str, str, str], list[int]] = {}
        for table in report.tables:
            for fault in table.faults:
                found.setdefault((table.table, str(fault.side), str(fault.kind)), []).extend(fault.offsets.tolist())
        return {name: sorted(offsets) for name, offsets in found.items()}

    def whole_log(self) -> list[tuple[Any, ...]]:
        return self.session.rows("select * from change_log order by log_offset, table_name")

    def both(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """T of trades on both sides, in the order of keys."""
        sql = "select trade_id, venue, price, quantity, _offset, _version from trades order by trade_id"
        return list(self.session.rows(sql)), [tuple(row) for row in self.service.sink.rows(sql)]

    def clean(self) -> VerifyRoom:
        """With both sides in agreement, whatever the test before has left."""
        if self.dirty:
            self.repair()
        self.dirty = True
        return self


@contextmanager
def unchanged(service: Service) -> Iterator[None]:
    """What is done in the block changes nothing on either side, by a checksum of every table of ours."""
    session = service.database.session()
    for schema in service.catalog.current.values():
        fold(session, schema, service.changelog.head)
    service.sink.command("system stop merges")
    try:
        before = _both_sides(session, service)
        yield
        assert _both_sides(session, service) == before
    finally:
        service.sink.command("system start merges")
        session.close()


def _both_sides(session: Session, service: Service) -> list[object]:
    """A checksum of every table of ours, and what ClickHouse stores it in."""
    names = session.rows("select table_name from duckdb_tables() where not temporary order by 1")
    ours = [(name, *session.rows(f'select count(*), bit_xor(hash(t)) from "{name}" t')) for (name,) in names]
    parts = (
        "select table, name, hash_of_all_files from system.parts where database = currentDatabase() and active "
        "order by 1, 2"
    )
    shapes = "select name, create_table_query from system.tables where database = currentDatabase() order by 1"
    return [*ours, *([tuple(row) for row in service.sink.rows(sql)] for sql in (parts, shapes))]


@contextmanager
def shared_room(path: Path, valkey: Valkey, server: ClickHouse, rows: int = 3000) -> Iterator[VerifyRoom]:
    """A filled room for the tests of one file. Where all of them have mended what they broke, both sides agree at the end."""
    database = f"verify_{uuid.uuid4().hex[:8]}"
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    server.execute(f"create database {database}")
    with VerifyRoom.open(path, valkey.url, server, database) as room:
        room.fill(rows)
        yield room
        if not room.dirty:  # most tests have looked at one table only
            agreed(room)
    server.start().execute(f"drop database if exists {database} sync")


def mended(room: VerifyRoom, *tables: str) -> VerifyReport:
    """Repair all or these tables, and see that both sides are as they were meant to be.

    Returns what the repair found before it did anything, so that a test need not compare for that alone.
    """
    report = room.repair(tables=tables)
    assert report.mismatches == 0, report.as_json()
    ours, theirs = room.both()
    assert ours == theirs
    room.dirty = False
    return report.before


def agreed(room: VerifyRoom, *tables: str) -> VerifyReport:
    """See that both sides agree, in all or these tables."""
    report = room.verify(tables=tables)
    assert report.mismatches == 0, report.as_json()
    room.dirty = False
    return report


def of(report: VerifyReport, name: str) -> TableResult:
    """One table of a report."""
    return next(table for table in report.tables if table.table == name)


def largest_batch(room: VerifyRoom) -> tuple[int, int]:
    sql = (
        "select first_offset, last_offset from sync_batches where table_name = 'trades' order by row_count desc limit 1"
    )
    first, last = room.session.row(sql) or (0, 0)
    return first, last


def listed(offsets: Iterable[int]) -> str:
    return ", ".join(map(str, offsets))

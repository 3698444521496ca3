"""What declared tables cost: typing a change at capture, folding at few and at many keys, T_log with its view.

``python -m ops.bench.tables``. CPU seconds are this process's (DuckDB's threads included); the insert's are chDB's.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from ops.bench.meter import process_cpu
from ops.bench.workload import COLUMNS
from replicator import sink_ddl
from replicator.catalog import Catalog
from replicator.config import TableConfig, migrations_dir
from replicator.database import Database, DatabaseOptions, Session
from replicator.embedded.clickhouse import ClickHouse
from replicator.lanes import ROW_HASH
from replicator.model import Checksum, OffsetRange
from replicator.sink import ClickHouseSink, Send, SinkOptions
from replicator.state import FOLD_OFFSETS_MAX, fold
from replicator.typed import check_sql

FOLD_STEP = 100_000

MAKE_CHANGES = """
insert into change_log
select
    i, (1::ubigint << 48) + i::ubigint, 'trades', case when i % 50 = 0 then 'd' else 'u' end, 'T' || (hash(i) % {keys}),
    case when i % 50 <> 0 then
        '{{"trade_id":"T' || (hash(i) % {keys}) || '","symbol":"AAPL","venue":"XNAS","price":"' || (100 + i % 90) || '.25",'
        || '"quantity":' || (i % 1000) || ',"executed_at":"2026-11-23T10:00:00.' || lpad((i % 1000000)::varchar, 6, '0') || 'Z"}}'
    end,
    1, null, null, null, timestamp '2026-11-23 10:00:00', 'trades', 1, '1700000000000-' || i, 0
from range({first}, {last} + 1) t(i)
"""


def _measured(rows: int, work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"rows_per_second": round(rows / wall), "cpu_seconds_per_million": round(cpu / rows * 1e6, 3)}


def _open(directory: Path) -> tuple[Database, Catalog, Session]:
    database = Database.open(DatabaseOptions(path=directory / "log.duckdb", memory_mb=1024))
    database.migrate(migrations_dir() / "duckdb")
    table = TableConfig(name="trades", stream="trades", key=("trade_id",), columns=dict(COLUMNS))
    return database, Catalog.open(database, [table], ["trades"]), database.session()


def typing(session: Session, catalog: Catalog, rows: int) -> dict[str, float]:
    """The check that capture makes of each change, over whole columns."""
    session.execute(
        f"create or replace temp table typed_changes as select (log_offset - 1)::integer as row_index, op, key, payload "
        f"from change_log where log_offset <= {rows}"
    )
    sql = f"select count(*) from ({check_sql(catalog.current['trades'], 'typed_changes')}) where fits"
    return _measured(rows, lambda: session.rows(sql))


def folding(directory: Path, keys: int, rows: int) -> dict[str, float]:
    """Folding in steps of 100,000 changes into a base that holds every key already."""
    database, catalog, session = _open(directory)
    session.execute(MAKE_CHANGES.format(keys=keys, first=1, last=keys))
    schema = catalog.current["trades"]
    for last in range(FOLD_OFFSETS_MAX, keys + FOLD_OFFSETS_MAX, FOLD_OFFSETS_MAX):
        fold(session, schema, min(last, keys))
    session.execute(MAKE_CHANGES.format(keys=keys, first=keys + 1, last=keys + rows))

    def work() -> None:
        for last in range(keys + FOLD_STEP, keys + rows + 1, FOLD_STEP):
            fold(session, schema, last)

    found = _measured(rows, work)
    session.close()
    database.close()
    return found


def inserting(directory: Path, session: Session, catalog: Catalog, rows: int) -> dict[str, float]:
    """Typed batches of 100,000 rows into T_log with its view into T_state, ready made."""
    lane = catalog.lane("trades", 1)
    with ClickHouse(directory=directory / "clickhouse", password="bench") as server:
        sink = ClickHouseSink(SinkOptions(endpoint=server.endpoint, user=server.user, password="bench"))
        for sql in sink_ddl.create_statements(catalog.current["trades"]):
            sink.command(sql)
        batches = [_batch(session, lane.batch_sql, first) for first in range(1, rows, FOLD_STEP)]
        wall, cpu = time.perf_counter(), (process_cpu(server.pid) or 0.0)
        for place, batch in enumerate(batches):
            offsets = OffsetRange(first=place * FOLD_STEP + 1, last=(place + 1) * FOLD_STEP)
            checksum = Checksum(rows=batch.num_rows, sum=place, xor=place)
            send = Send(
                pipeline="main",
                target=lane.target,
                offsets=offsets,
                checksum=checksum,
                send=1,
                attempt=1,
                schema=lane.arrow,
            )
            sink.insert(send, batch)
        wall, cpu = time.perf_counter() - wall, (process_cpu(server.pid) or 0.0) - cpu
        sink.close()
    return {"rows_per_second": round(rows / wall), "server_cpu_seconds_per_million": round(cpu / rows * 1e6, 3)}


def _batch(session: Session, sql: str, first: int) -> pa.Table:
    table = session.arrow(sql, {"first": first, "last": first + FOLD_STEP - 1}).drop_columns([ROW_HASH])
    table = table.append_column("_pipeline", pa.repeat("main", table.num_rows))
    return table.append_column("_send", pa.repeat(pa.scalar(1, pa.uint64()), table.num_rows)).combine_chunks()


@click.command()
@click.option("--rows", default=500_000, show_default=True, help="Changes per measurement, in whole hundred thousands.")
@click.option("--keys", default=(50_000, 5_000_000), multiple=True, show_default=True, help="Keys to fold at.")
def main(rows: int, keys: Sequence[int]) -> None:
    """Measure typing, folding and inserting; write ops/bench/results/tables.json."""
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        directory = Path(temporary)
        database, catalog, session = _open(directory / "one")
        session.execute(MAKE_CHANGES.format(keys=50_000, first=1, last=rows))
        results["typing at capture"] = typing(session, catalog, rows)
        results["insert into T_log with its view"] = inserting(directory, session, catalog, rows)
        session.close()
        database.close()
        for count in keys:
            results[f"fold at {count:,} keys"] = folding(directory / f"fold-{count}", count, rows)
    table = Table("what", "rows/s", "CPU s/M")
    for name, found in results.items():
        cpu = found.get("cpu_seconds_per_million", found.get("server_cpu_seconds_per_million"))
        table.add_row(name, f"{found['rows_per_second']:,}", f"{cpu}")
    Console().print(table)
    target = Path(__file__).parent / "results" / "tables.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"rows": rows, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

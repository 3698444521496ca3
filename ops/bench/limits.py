"""What the engines allow: each does only what no replicator can do without, on the same bytes."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import redis

from ops.bench.meter import Meter, Sample
from ops.bench.ours import log_changes, ready_batches
from ops.bench.room import Room
from replicator.capture import ROW_GROUP_ROWS
from replicator.collector import collector_paused
from replicator.database import CHECKPOINT_THRESHOLD
from replicator.sink import INSERT_SETTINGS
from replicator.source import ENTRIES_MAX


def drain(room: Room) -> Sample:
    """Read the whole stream and drop it."""
    connection = redis.Redis.from_url(room.redis_url, protocol=2).connection_pool.get_connection()
    position, entries = b"0-0", 0
    count = 4 if room.encoding == "arrow" else ENTRIES_MAX
    with Meter(room.servers) as meter, collector_paused():
        while True:
            connection.send_command("XREAD", "COUNT", count, "STREAMS", room.stream, position)
            reply = connection.read_response(disable_decoding=True)
            if not reply:
                break
            position, entries = reply[0][1][-1][0], entries + len(reply[0][1])
    connection.disconnect()
    return meter.sample(room.rows, entries=entries)


def append(room: Room) -> Sample:
    """Insert ready Arrow tables of one row group each into the log's table, a commit each, a checkpoint at the end."""
    changes = log_changes(room)
    tables = [changes.slice(at, ROW_GROUP_ROWS) for at in range(0, changes.num_rows, ROW_GROUP_ROWS)]
    config = {"threads": 2, "memory_limit": f"{room.cache_mb}MB", "checkpoint_threshold": CHECKPOINT_THRESHOLD}
    connection = duckdb.connect(str(room.directory / "bare.duckdb"), config=config)
    connection.register("ready", changes.slice(0, 0))
    connection.execute("create table change_log as from ready limit 0")
    with Meter(room.servers) as meter:
        for table in tables:
            connection.register("ready", table)
            connection.begin()
            connection.execute("insert into change_log from ready")
            connection.commit()
        connection.execute("checkpoint")
    connection.close()
    return meter.sample(changes.num_rows, commits=len(tables))


def insert(room: Room) -> Sample:
    """Insert ready Arrow batches into ClickHouse, one after the other."""
    sink, target, batches = ready_batches(room)
    client = sink.client()
    with Meter(room.servers) as meter:
        for number, batch in enumerate(batches):
            client.insert_arrow(target, batch, settings={**INSERT_SETTINGS, "insert_deduplication_token": str(number)})
    sink.close()
    return meter.sample(sum(map(_rows, batches)), inserts=len(batches))


def _rows(batch: pa.Table) -> int:
    return batch.num_rows

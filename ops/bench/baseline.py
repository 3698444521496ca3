"""The consumer people write by hand: a redis-py group and clickhouse-connect, no log, acknowledged after the insert."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

import clickhouse_connect
import redis

from ops.bench.meter import Meter, Sample
from ops.bench.room import Room

COLUMNS = ("entry_id", "trade_id", "symbol", "venue", "price", "quantity", "executed_at")
TABLE = """
create table trades (
    entry_id String, trade_id String, symbol LowCardinality(String), venue LowCardinality(String),
    price Decimal(18, 6), quantity Int64, executed_at DateTime64(6, 'UTC')
) engine = MergeTree order by entry_id
"""


def handwritten(room: Room) -> Sample:
    """Read by group, parse, insert, acknowledge: ``room.batch_rows`` entries at a time."""
    source = redis.Redis.from_url(room.redis_url)
    sink = _client(room)
    group, consumer = f"hand-{room.name}", "one"
    source.xgroup_create(room.stream, group, id="0")
    seen = 0
    with Meter(room.servers) as meter:
        while seen < room.rows:
            reply = source.xreadgroup(group, consumer, {room.stream: ">"}, count=room.batch_rows)
            entries = reply[0][1]
            sink.insert("trades", [_row(entry_id, fields) for entry_id, fields in entries], column_names=COLUMNS)
            source.xack(room.stream, group, *[entry_id for entry_id, _ in entries])
            seen += len(entries)
    source.xgroup_destroy(room.stream, group)
    return meter.sample(seen)


def _row(entry_id: bytes, fields: dict[bytes, bytes]) -> tuple[Any, ...]:
    trade = json.loads(fields[b"data"])
    at = datetime.fromisoformat(trade["executed_at"])
    price = Decimal(trade["price"])
    return entry_id.decode(), trade["trade_id"], trade["symbol"], trade["venue"], price, trade["quantity"], at


def _client(room: Room) -> Any:
    host, _, port = room.endpoint.removeprefix("http://").partition(":")
    login = {"host": host, "port": int(port), "username": room.user, "password": room.password}
    clickhouse_connect.get_client(**login).command(f"create database `{room.name}`")
    client = clickhouse_connect.get_client(**login, database=room.name)
    client.command(TABLE)
    return client

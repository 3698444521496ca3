"""Writes trades in each of the ways that a Python program can, one of them without our library.

REDIS_URL says where to. The table: trade_id VARCHAR (key), symbol VARCHAR, price DECIMAL(18,6), quantity BIGINT.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import redis

from replicator import Producer

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")


def with_the_library() -> None:
    """One change at a time: buffered, in order, with an idempotency key each, so that a resend is dropped."""
    with Producer(REDIS_URL, key={"trades": "trade_id"}) as producer:
        row = {"trade_id": "T1", "symbol": "AAPL", "price": Decimal("189.25"), "quantity": 100}
        producer.create("trades", row, at=datetime.now(UTC))
        producer.upsert("trades", row | {"quantity": 60})
        producer.create("trades", row | {"trade_id": "T2"})
        producer.delete("trades", "T2")


def with_arrow() -> None:
    """Many changes in one entry: the fast path."""
    trades = pa.table(
        {
            "trade_id": [f"B{n}" for n in range(1_000)],
            "symbol": pa.repeat("MSFT", 1_000),
            "price": pa.array([Decimal(n).scaleb(-2) for n in range(1_000)], pa.decimal128(18, 6)),
            "quantity": pa.array(range(1_000)),
        }
    )
    with Producer(REDIS_URL, key={"trades": "trade_id"}) as producer:
        producer.send_batch("trades", trades)


def with_any_client() -> str:
    """Nothing but XADD. Returns the entry's id, which a reader can wait for. Decimals travel as strings."""
    row = {"trade_id": "T3", "symbol": "NVDA", "price": "171.5", "quantity": 7}
    with redis.Redis.from_url(REDIS_URL, decode_responses=True) as client:
        return str(client.xadd("trades", {"op": "c", "id": "order-4711", "data": json.dumps(row)}))


if __name__ == "__main__":
    with_the_library()
    with_arrow()
    print(with_any_client())

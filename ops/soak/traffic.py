"""A producer in a process of its own that holds a rate, and knows at its end what it wrote."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event

import redis
from attrs import define, field

KEYS = 10_000
TICK_SECONDS = 0.05
PIPE_MAX = 2_000


@define
class Written:
    """What was acknowledged: entries by stream, and each order's quantity (None: deleted)."""

    entries: dict[str, int] = field(factory=lambda: {"trades": 0, "orders": 0})
    orders: dict[str, int | None] = field(factory=dict)
    seconds: float = 0.0


@define
class Traffic:
    """Half trades, half orders; one order in twenty is a delete."""

    written: Written | None = None
    _stop: Event = field(factory=multiprocessing.get_context("spawn").Event)

    @contextmanager
    def flowing(self, redis_url: str, rate: int) -> Iterator[None]:
        spawn = multiprocessing.get_context("spawn")
        told: Queue[Written] = spawn.Queue()
        process = spawn.Process(target=_write, args=(redis_url, rate, self._stop, told), daemon=True)
        process.start()
        try:
            yield
        finally:
            self._stop.set()
            self.written = told.get(timeout=60)
            process.join(30)


def _write(redis_url: str, rate: int, stop: Event, told: Queue[Written]) -> None:
    written, chance, began, sent = Written(), random.Random(11), time.monotonic(), 0
    with redis.Redis.from_url(redis_url) as client:
        while not stop.wait(TICK_SECONDS):
            due = int((time.monotonic() - began) * rate) - sent
            _add(client, written, chance, sent, min(due, PIPE_MAX))
            sent += min(due, PIPE_MAX)
    written.seconds = time.monotonic() - began
    told.put(written)


def _add(client: redis.Redis, written: Written, chance: random.Random, first: int, count: int) -> None:
    pipe = client.pipeline(transaction=False)
    for number in range(first, first + count):
        if number % 2:
            pipe.xadd(
                "trades", {"data": json.dumps({"n": number, "text": "a trade of about a hundred bytes, as most"})}
            )
            written.entries["trades"] += 1
            continue
        key = f"O{chance.randrange(KEYS)}"
        deletes = chance.random() < 0.05
        row = {"order_id": key} if deletes else {"order_id": key, "quantity": number, "price": f"{number}.25"}
        pipe.xadd("orders", {"op": "d" if deletes else "u", "data": json.dumps(row)})
        written.entries["orders"] += 1
        written.orders[key] = None if deletes else number
    pipe.execute()

"""An order book: adds, modifies and cancels keyed by order, folded independently and compared with T on both sides."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from tables_room import TablesRoom

from replicator.embedded.clickhouse import ClickHouse

ORDERS = """
[[tables]]
name = "orders"
key = ["venue", "order_id"]
[tables.columns]
venue = "VARCHAR"
order_id = "BIGINT"
side = "ENUM('buy', 'sell')"
price = "DECIMAL(18,4)"
quantity = "BIGINT"
"""
COLUMNS = "venue, order_id, side::varchar, price, quantity"
BOOK = f"select {COLUMNS} from orders order by venue, order_id"
LEVELS = "select side::varchar as s, price as p, sum(quantity), count(*) from orders group by s, p order by s, p"
Key = tuple[str, int]
Change = dict[str, str]


@define
class Market:
    """Makes changes, and keeps the book that they amount to."""

    seed: random.Random
    book: dict[Key, tuple[str, Decimal, int]] = field(factory=dict)
    gone: list[Key] = field(factory=list)

    def changes(self, count: int) -> list[Change]:
        return [self._change() for _ in range(count)]

    def _change(self) -> Change:
        chance = self.seed.random()
        if chance < 0.25 and self.book:
            return self.cancel(self.seed.choice(sorted(self.book)))
        if chance < 0.55 and self.book:
            return self.put(self.seed.choice(sorted(self.book)), "u")
        if chance < 0.65 and self.gone:
            return self.put(self.gone.pop(self.seed.randrange(len(self.gone))), "c")
        return self.put((self.seed.choice("XY"), self.seed.randrange(10**12)), "c")

    def put(self, key: Key, op: str) -> Change:
        side, price = self.seed.choice(("buy", "sell")), Decimal(self.seed.randrange(10**6, 10**6 + 40)).scaleb(-4)
        self.book[key] = side, price, self.seed.randrange(1, 10**15)
        row = dict(zip(("venue", "order_id", "side", "quantity"), (*key, side, self.book[key][2]), strict=True))
        return {"data": json.dumps(row | {"price": str(price)}), "op": op}

    def cancel(self, key: Key) -> Change:
        """By the key alone, or by a row that holds it."""
        del self.book[key]
        self.gone.append(key)
        if self.seed.random() < 0.5:
            return {"key": json.dumps([key[0], str(key[1])]), "op": "d"}
        return {"data": json.dumps({"order_id": key[1], "venue": key[0]}), "op": "d"}

    def rows(self) -> list[tuple[Any, ...]]:
        return [(*key, *self.book[key]) for key in sorted(self.book)]

    def levels(self) -> list[tuple[Any, ...]]:
        found: dict[tuple[str, Decimal], tuple[int, int]] = {}
        for side, price, quantity in self.book.values():
            total, orders = found.get((side, price), (0, 0))
            found[side, price] = total + quantity, orders + 1
        return [(*level, *found[level]) for level in sorted(found)]


@pytest.fixture
def room(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str
) -> Iterator[TablesRoom]:
    with TablesRoom.open(tmp_path, redis_url, clickhouse_server, clickhouse_database, ORDERS) as found:
        yield found


@pytest.fixture
def market() -> Market:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - to run it again with
    return Market(seed=random.Random(seed))


def send(room: TablesRoom, changes: Sequence[Change]) -> None:
    """All in one millisecond of Redis."""
    newest = room.redis.xinfo_stream("orders")["last-generated-id"] if room.redis.exists("orders") else b"1000-0"
    millisecond = int(newest.split(b"-")[0]) + 1
    pipe = room.redis.pipeline()
    for change in changes:
        pipe.xadd("orders", {**change, "ts": "1767225600000"}, id=f"{millisecond}-*")
    pipe.execute()


def assert_book(room: TablesRoom, market: Market) -> None:
    assert room.both(BOOK) == market.rows()
    assert room.both(LEVELS) == market.levels()


def test_the_book_is_the_same_on_both_sides_before_and_after_fold_and_merge(room: TablesRoom, market: Market) -> None:
    send(room, market.changes(600))
    room.settle()
    assert_book(room, market)
    room.fold("orders")
    assert_book(room, market)
    send(room, market.changes(600))
    room.settle()
    assert_book(room, market)
    room.command("optimize table orders_state final")
    room.command("optimize table orders_log final")
    send(room, market.changes(600))
    room.settle()
    assert_book(room, market)
    room.fold("orders")
    assert_book(room, market)
    room.assert_verified()


def test_a_deleted_order_may_be_created_again_at_once_or_long_after(room: TablesRoom, market: Market) -> None:
    keys = [("X", n) for n in range(4)]
    send(room, [market.put(key, "c") for key in keys])
    send(room, [market.cancel(keys[0]), market.put(keys[0], "c")])  # in the same millisecond, the same batch
    send(room, [market.cancel(keys[1]), market.put(keys[1], "c"), market.cancel(keys[1])])
    send(room, [market.cancel(keys[2])])
    room.settle()
    assert_book(room, market)
    room.fold("orders")
    room.command("optimize table orders_state final")  # the tombstones are merged
    assert_book(room, market)
    send(room, [market.put(keys[1], "c"), market.put(keys[2], "c")])
    room.settle()
    assert_book(room, market)
    assert len(market.book) == 4
    room.assert_verified()


def test_a_key_only_delete_of_what_never_was_changes_nothing(room: TablesRoom, market: Market) -> None:
    send(
        room,
        [
            market.put(("X", 1), "c"),
            {"key": '["X","99"]', "op": "d"},
            {"data": '{"venue":"Y","order_id":1}', "op": "d"},
        ],
    )
    room.settle()
    assert_book(room, market)
    assert room.both("select venue, order_id, side, price from orders_log where _op = 'd' order by 1") == [
        ("X", 99, None, None),
        ("Y", 1, None, None),
    ]
    room.fold("orders")
    assert_book(room, market)
    room.assert_verified()


def test_old_rows_that_arrive_late_do_not_win(room: TablesRoom, market: Market) -> None:
    send(room, market.changes(300))
    first = room.settle()
    send(room, market.changes(300))
    room.settle()
    for _ in range(2):  # before and after the newer rows, and the tombstones, are merged
        room.command(
            f"insert into orders_log select * replace (_send + 1000 as _send) from orders_log final where _offset <= {first}"
        )
        assert_book(room, market)
        room.command("optimize table orders_state final")
        assert_book(room, market)
    room.command("optimize table orders_log final")
    assert room.clickhouse("select count(), uniqExact(_offset) from orders_log") == [(600, 600)]

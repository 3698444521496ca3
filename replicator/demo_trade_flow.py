"""A day at a small broker as changes: orders are placed, filled and cancelled, trades booked, corrected and busted.

Guarantees that the same seed yields the same changes, and that ``current`` holds what every table must hold once all
of them are applied: the demo's own account of the truth, kept apart from everything it checks. Has no I/O.
"""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from attrs import define, field, frozen

from replicator.model import Op

KEYS: Mapping[str, tuple[str, ...]] = {
    "orders": ("order_id",),
    "trades": ("trade_id",),
    "positions": ("account", "symbol"),
}
"""The tables and their keys, as the configuration that ships declares them."""

_PRICES = {"AAPL": 23125, "AMZN": 21840, "ASML": 98410, "BRK.B": 47315, "MSFT": 50290, "NVDA": 18866, "SAP": 26105}
_VENUES = ("XNAS", "XNYS", "XETR", "BATS", "IEXG")
_ACCOUNTS = tuple(f"ACC-{number:03}" for number in range(1, 41))
_MICROPRICE = Decimal("0.000001")
_ORDERS_OPEN_MIN = 200
_ORDERS_DONE_MAX = 1500

Row = dict[str, Any]
Key = tuple[Any, ...]


@frozen(kw_only=True)
class Change:
    """One change as the producer is given it: the whole row, or only the key for a delete."""

    table: str
    op: Op
    row: Row
    at: dt.datetime


@define
class TradeFlow:
    """The book as it stands; `changes` moves it on."""

    opened_at: dt.datetime
    seed: int = 20_251
    current: dict[str, dict[Key, Row]] = field(factory=lambda: {table: {} for table in KEYS}, init=False)
    counts: Counter[tuple[str, Op]] = field(factory=Counter, init=False)
    _dice: random.Random = field(init=False)
    _now: dt.datetime = field(init=False)
    _ticks: dict[str, int] = field(factory=lambda: dict(_PRICES), init=False)
    _open: list[str] = field(factory=list, init=False)
    _done: list[str] = field(factory=list, init=False)
    _trades: list[str] = field(factory=list, init=False)
    _serial: Counter[str] = field(factory=Counter, init=False)

    def __attrs_post_init__(self) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311 - a story, not a secret
        self._now = self.opened_at

    @property
    def sent(self) -> Counter[str]:
        """How many changes each table has seen."""
        totals: Counter[str] = Counter()
        for (table, _), count in self.counts.items():
            totals[table] += count
        return totals

    def changes(self) -> Iterator[Change]:
        """Changes without end; take as many as wanted. Each is in ``current`` once it is taken."""
        while True:
            self._now += dt.timedelta(microseconds=self._dice.randrange(40, 4000))
            for change in self._step():
                self._apply(change)
                yield change

    def _apply(self, change: Change) -> None:
        key = tuple(change.row[name] for name in KEYS[change.table])
        if change.op is Op.DELETE:
            del self.current[change.table][key]
        else:
            self.current[change.table][key] = change.row
        self.counts[change.table, change.op] += 1

    def _step(self) -> Iterator[Change]:
        roll = self._dice.random()
        if len(self._open) < _ORDERS_OPEN_MIN or roll < 0.30:
            yield self._place()
        elif roll < 0.90:
            yield from self._fill()
        elif roll < 0.96:
            yield self._cancel()
        elif self._trades:
            yield self._correct() if roll < 0.99 else self._bust()
        if len(self._done) > _ORDERS_DONE_MAX:
            yield self._delete("orders", order_id=self._done.pop(0))

    def _place(self) -> Change:
        symbol = self._dice.choice(tuple(_PRICES))
        self._ticks[symbol] = max(100, self._ticks[symbol] + self._dice.randint(-8, 8))
        order_id = self._number("O")
        self._open.append(order_id)
        row = {
            "order_id": order_id,
            "account": self._dice.choice(_ACCOUNTS),
            "symbol": symbol,
            "venue": self._dice.choice(_VENUES),
            "side": self._dice.choice(("buy", "sell")),
            "price": Decimal(self._ticks[symbol] + self._dice.randint(-20, 20)).scaleb(-2),
            "quantity": 100 * self._dice.randint(1, 40),
            "status": "new",
            "placed_at": self._now,
        }
        return self._change("orders", Op.CREATE, row)

    def _fill(self) -> Iterator[Change]:
        """A trade is booked, the order moves on, and the position with it."""
        order = self._any_open()
        filled = order["quantity"] if self._dice.random() < 0.5 else 100
        # half a tick inside, as a midpoint match gives: three decimals
        price = order["price"] + (Decimal("0.005") if self._dice.random() < 0.3 else 0)
        trade_id = self._number("T")
        self._trades.append(trade_id)
        copied = {name: order[name] for name in ("order_id", "symbol", "venue", "side")}
        trade = {
            "trade_id": trade_id,
            **copied,
            "price": price,
            "quantity": filled,
            "notional": price * filled,
            "executed_at": self._now,
        }
        yield self._change("trades", Op.CREATE, trade)
        done = filled == order["quantity"]
        if done:
            self._close(order["order_id"])
        left = order if done else order | {"quantity": order["quantity"] - filled}
        yield self._change("orders", Op.UPDATE, left | {"status": "filled" if done else "partially_filled"})
        yield self._position(order["account"], order["symbol"], filled if order["side"] == "buy" else -filled, price)

    def _position(self, account: str, symbol: str, quantity: int, price: Decimal) -> Change:
        before = self.current["positions"].get((account, symbol))
        held = before["quantity"] if before else 0
        after = held + quantity
        if after == 0:
            return self._delete("positions", account=account, symbol=symbol)
        average = price
        if before and held * quantity > 0:
            average = (before["average_price"] * held + price * quantity) / after
        elif before and held * after > 0:
            average = before["average_price"]
        row = {
            "account": account,
            "symbol": symbol,
            "quantity": after,
            "average_price": average.quantize(_MICROPRICE),
            "updated_at": self._now,
        }
        return self._change("positions", Op.UPDATE if before else Op.CREATE, row)

    def _cancel(self) -> Change:
        order = self._any_open()
        self._close(order["order_id"])
        return self._change("orders", Op.UPDATE, order | {"status": "cancelled"})

    def _correct(self) -> Change:
        trade = self.current["trades"][(self._dice.choice(self._trades),)]
        price = trade["price"] + Decimal(self._dice.choice((-1, 1))).scaleb(-2)
        return self._change("trades", Op.UPDATE, trade | {"price": price, "notional": price * trade["quantity"]})

    def _bust(self) -> Change:
        return self._delete("trades", trade_id=self._trades.pop(self._dice.randrange(len(self._trades))))

    def _change(self, table: str, op: Op, row: Row) -> Change:
        return Change(table=table, op=op, row=row, at=self._now)

    def _delete(self, table: str, **key: str) -> Change:
        return self._change(table, Op.DELETE, key)

    def _any_open(self) -> Row:
        return self.current["orders"][(self._dice.choice(self._open),)]

    def _close(self, order_id: str) -> None:
        self._open.remove(order_id)
        self._done.append(order_id)

    def _number(self, prefix: str) -> str:
        self._serial[prefix] += 1
        return f"{prefix}{self._serial[prefix]:07}"

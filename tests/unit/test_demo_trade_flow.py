"""The demo's story: the same every time, and its own account of the current rows is right."""

from __future__ import annotations

import datetime as dt
from itertools import islice

from replicator.demo_trade_flow import KEYS, Change, Key, Row, TradeFlow
from replicator.model import Op

OPENED_AT = dt.datetime(2026, 3, 2, 9, 30, tzinfo=dt.UTC)


def changes(count: int) -> tuple[TradeFlow, list[Change]]:
    flow = TradeFlow(opened_at=OPENED_AT)
    return flow, list(islice(flow.changes(), count))


def test_the_same_seed_tells_the_same_story() -> None:
    assert changes(3000)[1] == changes(3000)[1]


def test_current_is_what_the_changes_come_to() -> None:
    flow, told = changes(12_000)
    folded: dict[str, dict[Key, Row]] = {table: {} for table in KEYS}
    for change in told:
        key = tuple(change.row[name] for name in KEYS[change.table])
        if change.op is Op.DELETE:
            del folded[change.table][key]
        else:
            assert (change.op is Op.CREATE) == (key not in folded[change.table])
            folded[change.table][key] = change.row
    assert folded == flow.current
    assert sum(flow.sent.values()) == len(told)


def test_every_table_sees_creates_updates_and_deletes() -> None:
    flow, _ = changes(20_000)
    for table in KEYS:
        for op in (Op.CREATE, Op.UPDATE, Op.DELETE):
            assert flow.counts[table, op] > 10, (table, op)


def test_a_position_is_the_sum_of_its_trades() -> None:
    _, told = changes(5000)
    accounts, held = {}, {}
    for change in told:
        if change.table == "orders" and change.op is not Op.DELETE:
            accounts[change.row["order_id"]] = change.row["account"]
        if change.table == "trades" and change.op is Op.CREATE:
            key = (accounts[change.row["order_id"]], change.row["symbol"])
            held[key] = held.get(key, 0) + change.row["quantity"] * (1 if change.row["side"] == "buy" else -1)
        if change.table == "positions":
            quantity = 0 if change.op is Op.DELETE else change.row["quantity"]
            assert held[change.row["account"], change.row["symbol"]] == quantity

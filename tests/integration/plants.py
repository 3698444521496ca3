"""Faults planted at random in what is delivered, and what verify must find of them."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable

from verify_room import VerifyRoom, listed

STILL_KEYS = 20
STILL = "(key like 'GONE%' or key like 'KEPT%')"
Places = dict[tuple[str, str, str], set[int]]
"""Offsets at fault by (table, side, kind)."""


def seed() -> int:
    """A seed that is another in each run. A test names it where it fails."""
    found = random.SystemRandom().randrange(1 << 32)
    sys.stdout.write(f"planted with seed {found}\n")
    return found


# ── rows ──


def plant(room: VerifyRoom, dice: random.Random) -> Places:
    """Break both sides, at different offsets of what is delivered. Returns what verify must find."""
    first, last = dice.choice(_oldest_batches(room, "positions"))
    room.sql(f"delete from positions_log where _offset between {first} and {last}")
    whole = room.session.rows(
        f"select log_offset from change_log where table_name = 'positions' and log_offset between {first} and {last}"
    )
    rows = room.session.rows(
        f"select log_offset from change_log where table_name = 'trades' and op = 'u' and not {STILL} and log_offset <= "
        "(select max(last_offset) from sync_batches where table_name = 'trades' and delivered_at is not null)"
    )
    picked = dice.sample(sorted(at for (at,) in rows), 14)
    gone, altered, lost, twice = set(picked[:4]), set(picked[4:8]), set(picked[8:11]), set(picked[11:])
    room.sql(f"delete from trades_log where _offset in ({listed(gone)})")
    room.sql(f"alter table trades_log update price = price + 1 where _offset in ({listed(altered)})")
    room.log_sql(f"delete from change_log where log_offset in ({listed(lost)})")
    room.log_sql(f"insert into change_log select * from change_log where log_offset in ({listed(twice)})")
    return {
        ("positions", "sink", "missing"): {at for (at,) in whole},
        ("trades", "sink", "missing"): gone,
        ("trades", "sink", "different"): altered,
        ("trades", "log", "missing"): lost,
        ("trades", "log", "doubled"): twice,
    }


def plant_doubled(room: VerifyRoom, dice: random.Random, but: Iterable[int]) -> Places:
    """Rows that one send has left twice, at other offsets than ``but``. They stay so until `let_merge`."""
    room.sql("alter table trades_log modify setting max_bytes_to_merge_at_max_space_in_pool = 1")
    sql = f"select _offset from trades_log final where _op = 'u' and _offset not in ({listed(but)})"
    twice = set(dice.sample(sorted(at for (at,) in room.service.sink.rows(sql)), 3))
    room.sql(f"insert into trades_log select * from trades_log final where _offset in ({listed(twice)})")
    return {("trades", "sink", "doubled"): twice}


def let_merge(room: VerifyRoom) -> None:
    room.sql("alter table trades_log reset setting max_bytes_to_merge_at_max_space_in_pool")


def _oldest_batches(room: VerifyRoom, table: str) -> list[tuple[int, int]]:
    """Delivered batches that hold something, without the newest ones."""
    sql = (
        "select first_offset, last_offset from sync_batches where table_name = ? and delivered_at is not null "
        "and row_count > 3 order by first_offset limit 5"
    )
    return [(first, last) for first, last in room.session.rows(sql, [table])]


# ── current rows ──


def still_keys(room: VerifyRoom) -> None:
    """Keys that no flow comes back to: GONE0 … are deleted, KEPT0 … are current."""
    trade = {"venue": "V9", "price": "1.5", "quantity": 7}
    keys = [f"{kind}{n}" for n in range(STILL_KEYS) for kind in ("GONE", "KEPT")]
    room.produce([("trades", {"data": json.dumps({"trade_id": key, **trade})}) for key in keys])
    room.produce([("trades", {"op": "d", "key": f"GONE{n}"}) for n in range(STILL_KEYS)])
    room.wait_delivered()


def plant_state(room: VerifyRoom, dice: random.Random) -> set[tuple[str, str, str]]:
    """Let T_state differ from T_log: a tombstone lost, one lost under which an old row shows, a row altered, one gone.

    Returns (key, side, kind) of what verify must find of `still_keys`.
    """
    (lost, shown), (altered, gone) = dice.sample(range(STILL_KEYS), 2), dice.sample(range(STILL_KEYS), 2)
    room.sql(f"alter table trades_state delete where trade_id in ('GONE{lost}', 'GONE{shown}', 'KEPT{gone}')")
    room.sql(f"alter table trades_state update price = price + 1 where trade_id = 'KEPT{altered}'")
    room.sql(
        "insert into trades_state select trade_id, venue, price, quantity, executed_at, _pipeline, _offset, _version, "
        "_op, _event_id, _event_at, _logged_at, _schema_version, 0 from trades_log final "
        f"where trade_id = 'GONE{shown}' and _op != 'd'"
    )
    return {
        (f"GONE{lost}", "sink", "missing"),
        (f"GONE{shown}", "sink", "extra"),
        (f"KEPT{altered}", "sink", "different"),
        (f"KEPT{gone}", "sink", "missing"),
    }

"""Every fault, shorter and longer than the ladder, on one table and on all: what was parked, what came back."""

from __future__ import annotations

from typing import Any

import pytest
from contract.fakes import LEDGER, FakeClickHouse, Fault
from deliver_room import delivered, once
from log_room import LogRoom

from replicator.errors import OutcomeUnknown, ReplicatorError, SinkMisshapen, SinkRefused, SinkUnavailable
from replicator.retry import Ladder

RETRIES = 3
FAULTS: list[Fault | ReplicatorError] = [
    Fault.REFUSED,
    Fault.OVERLOADED,
    Fault.LOST_BEFORE,
    Fault.LOST_AFTER,
    SinkUnavailable("503 Service Unavailable"),
    SinkUnavailable("too many parts", code=252),
    SinkUnavailable("memory", code=241),
    OutcomeUnknown("timeout", code=159),
    SinkMisshapen("no such table", code=60),
    SinkRefused("wrong password", code=516),
]
PARK_NOTHING = (SinkMisshapen, SinkRefused)


@pytest.mark.parametrize("tables", [("change_log",), ("change_log", "orders", LEDGER)], ids=["one table", "all"])
@pytest.mark.parametrize("times", [RETRIES - 1, 4 * RETRIES], ids=["shorter", "longer"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_whatever_fails_however_long_everything_arrives_once(
    room: LogRoom, server: FakeClickHouse, fault: Fault | ReplicatorError, times: int, tables: tuple[str, ...]
) -> None:
    room.ladder = Ladder(waits_seconds=[0.001], retries_max=RETRIES)
    met = dict.fromkeys(tables, 0)

    def meet(table: str, send: Any) -> Any:
        if met.get(table, times) >= times:
            return None
        met[table] += 1
        return fault

    server.meet = meet
    for _ in range(3):
        room.append(70)
        room.append(30, table="orders")
    room.until(delivered(room, server))
    room.until(lambda: all(row[4] == "resolved" for row in room.failed()))
    once(room, server)
    once(room, server, "orders")
    parked = room.failed()
    longer = times > RETRIES and not isinstance(fault, PARK_NOTHING) and fault is not Fault.LOST_AFTER
    assert len(parked) == (len(set(tables) - {LEDGER}) if longer else 0)
    assert {row[3] for row in parked} <= {"outage"}

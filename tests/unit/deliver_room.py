"""What the tests of deliver share: a room over a fake ClickHouse, scripts of faults, and what must hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define
from contract.fakes import FakeClickHouse
from log_room import LogRoom


@define
class Script:
    """What the next inserts meet, table by table; then nothing."""

    faults: dict[str, list[Any]]

    def __call__(self, table: str, send: object) -> Any:
        waiting = self.faults.get(table)
        return waiting.pop(0) if waiting else None


def all_in(room: LogRoom, server: FakeClickHouse, lane: str = "change_log") -> bool:
    return {offset for offset, _ in server.physical(lane)} >= set(room.offsets_of(lane))


def delivered(room: LogRoom, server: FakeClickHouse) -> Callable[[], bool]:
    """Everything is in the sink and in the ledger, and promise 3 holds; asked at every turn."""

    def check() -> bool:
        room.check_promise_three(server.physical)
        return room.deliver.checkpoint >= room.log.head and not room.deliver.recorder.waiting

    return check


def once(room: LogRoom, server: FakeClickHouse, lane: str = "change_log") -> None:
    """Each change is in the sink exactly once, physically, and the ledger's union is whole."""
    assert [offset for offset, _ in server.physical(lane)] == room.offsets_of(lane)
    end = 0
    for first, last in sorted((r.first_offset, r.last_offset) for r in server.ledger.values() if r.table_name == lane):
        assert first == end + 1
        end = last

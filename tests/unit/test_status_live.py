"""What a report says of delivery while changes are being logged: never further along than it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from attrs import define
from log_room import LogRoom

from replicator.database import Session
from replicator.status_live import read_delivery


@define
class Overtaken(Session):
    """A session during each of whose answers something else happens."""

    meanwhile: Callable[[], None] = lambda: None

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        found = super().rows(sql, parameters)
        self.meanwhile()
        return found


def test_what_is_logged_while_a_report_is_made_is_never_taken_for_delivered(room: LogRoom) -> None:
    room.append(5)
    room.until(lambda: room.deliver.checkpoint == 5)
    room.deliver.loaded = False  # as before its first turn
    session = Overtaken(database=room.database, meanwhile=lambda: room.append(1))
    service = SimpleNamespace(deliver=room.deliver, changelog=room.log)
    delivery = read_delivery(service, session)  # type: ignore[arg-type]
    session.meanwhile = lambda: None
    session.close()
    assert delivery.checkpoint == 5
    assert {facts.standing.lane: facts.at for facts in delivery.lanes} == {"change_log": 5}

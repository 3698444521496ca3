"""What a report says of delivery while changes are being logged: never further along than it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from attrs import define
from log_room import LogRoom

from replicator.database import Session
from replicator.status import Rates
from replicator.status_live import RATE_WINDOW_SECONDS, Sample, read_delivery, recent_rates


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


def sample(at: float, count: int) -> Sample:
    return Sample(at=at, entries_read=count, changes_logged=count, rows_delivered=count, log_bytes=0, redis_bytes=None)


def test_rates_are_of_the_last_while_and_known_where_samples_are_far_apart() -> None:
    steady = tuple(sample(10.0 * turn, 100 * turn) for turn in range(7))
    assert recent_rates(steady) == Rates(entries_read=10, changes_logged=10, rows_delivered=10)
    far = 3 * RATE_WINDOW_SECONDS
    sparse = (sample(0, 0), sample(far, 0), sample(2 * far, 900))
    assert recent_rates(sparse) == Rates(entries_read=10, changes_logged=10, rows_delivered=10)


def test_rates_are_unknown_from_one_sample_alone() -> None:
    assert recent_rates((sample(5, 5),)) == recent_rates((sample(5, 5), sample(5.1, 9))) == Rates()

"""One disk for all the runs of a file: making it costs more than a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from simulation.world import Room


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    room = Room.make()
    yield room
    room.close()

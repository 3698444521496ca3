"""Seeds of the simulation: capture and deliver as they stand, under every kind of fault. Part 2 of 2, one per test process."""

from __future__ import annotations

import pytest
from simulation.play import play_all
from simulation.world import Room

FIRST, SEEDS, AT_ONCE = 1000, 60, 20


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, AT_ONCE))
def test_every_promise_holds_at_every_step_and_after_healing(first: int, room: Room) -> None:
    play_all(range(first, first + AT_ONCE), room)

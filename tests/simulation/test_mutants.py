"""The simulation bites: classic bugs, put into the product, are noticed within a few seeds; without them the seeds pass."""

from __future__ import annotations

import pytest
from simulation.mutants import MUTANTS, Mutant
from simulation.play import command, explain
from simulation.world import Outcome, Room, run

SEEDS = 20


def catch(mutant: Mutant, room: Room) -> Outcome | None:
    """The first run that notices it."""
    with mutant.planted():
        for seed in range(SEEDS):
            outcome = run(seed, room, mutant.steps, mutant.kinds)
            if outcome.broken:
                return outcome
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_classic_bug_is_noticed(mutant: Mutant, room: Room) -> None:
    outcome = catch(mutant, room)
    assert outcome is not None, f"{SEEDS} seeds, and nobody noticed that {mutant.breaks}"
    assert command(outcome) in explain(outcome)
    healthy = run(outcome.seed, room, mutant.steps, mutant.kinds)
    assert not healthy.broken, explain(healthy)


def test_a_seed_gives_the_same_run_again_to_the_last_step(room: Room) -> None:
    first, again = run(7, room), run(7, room)
    assert first.trace == again.trace and len(first.trace) > 10

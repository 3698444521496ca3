"""`python -m ops.soak simulate`: the simulation of `tests/simulation` for as many steps as asked, from one seed on.

Capture and deliver as they stand, between a simulated Redis, ClickHouse, clock and disk, single-threaded: a seed gives
the same run again. A run that breaks a promise is shown with its trace and the command that replays it.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

MISMATCH = 4
RUNS_PER_DISK = 200
"""Rows that were deleted stay in a DuckDB in memory: now and then a new one is taken."""
TESTS = Path(__file__).resolve().parents[2] / "tests"

if TYPE_CHECKING:
    from simulation.world import Outcome


@click.command(help=__doc__)
@click.option(
    "--steps", type=int, default=100_000, show_default=True, help="turns of the scheduler, in all runs together"
)
@click.option("--seed", type=int, default=0, show_default=True, help="the first seed")
@click.option("--seeds", type=int, help="how many seeds, instead of --steps")
@click.option("--length", type=int, default=120, show_default=True, help="steps of each run before its faults end")
@click.option("--kinds", help="only these kinds of faults, with commas")
@click.option("--trace", is_flag=True, help="print the whole trace of every run")
@click.option("--as-json", "--json", "as_json", is_flag=True, help="one JSON document")
def main(steps: int, seed: int, seeds: int | None, length: int, kinds: str | None, trace: bool, as_json: bool) -> None:
    sys.path.insert(0, str(TESTS))
    from simulation.play import explain, shrink  # noqa: PLC0415
    from simulation.world import Room, run  # noqa: PLC0415

    told = frozenset(filter(None, kinds.split(","))) if kinds is not None else None
    room, counts, broken, refused = Room.make(), Counter[str](), [], 0
    began, turns, number = time.process_time(), 0, 0
    while turns < steps if seeds is None else number < seeds:
        if number and number % RUNS_PER_DISK == 0:
            room.close()
            room = Room.make()
        outcome: Outcome = run(seed + number, room, length, told)
        turns, number, counts, refused = (
            turns + outcome.turns,
            number + 1,
            counts + outcome.counts,
            refused + bool(outcome.refused),
        )
        if trace:
            click.echo("\n".join(outcome.trace))
        if outcome.broken:
            broken.append(outcome.seed)
            click.echo(explain(shrink(outcome, room)), err=True)
    room.close()
    figures = {
        "seeds": number,
        "steps": turns,
        "broken": broken,
        "refused": refused,
        "faults": dict(sorted(counts.items())),
    }
    spent = time.process_time() - began
    click.echo(json.dumps({**figures, "cpu_seconds": round(spent, 1)}) if as_json else _text(figures, spent))
    if broken:
        sys.exit(MISMATCH)


def _text(figures: dict[str, object], spent: float) -> str:
    lines = [f"{name}: {value}" for name, value in figures.items()]
    return "\n".join([*lines, f"cpu seconds: {spent:.1f}"])

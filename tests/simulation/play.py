"""What the tests and the soak do with runs: play seeds, explain one that broke a promise, find a smaller one that does."""

from __future__ import annotations

from collections.abc import Iterable

from simulation.world import STEPS, Outcome, Room, run

TRACE_LINES = 60


def command(outcome: Outcome) -> str:
    """What replays a run exactly."""
    kinds = "" if outcome.kinds is None else f" --kinds {','.join(sorted(outcome.kinds))}"
    return f"python -m ops.soak simulate --seed {outcome.seed} --seeds 1 --length {outcome.steps}{kinds} --trace"


def explain(outcome: Outcome) -> str:
    """What was broken, how to see it again, and how it came to that."""
    ended = outcome.trace[-TRACE_LINES:]
    left_out = len(outcome.trace) - len(ended)
    head = [f"seed {outcome.seed}: {outcome.broken}", f"replay: {command(outcome)}", f"({left_out} lines left out)"]
    return "\n".join([*head, *ended])


def play_all(seeds: Iterable[int], room: Room, steps: int = STEPS) -> None:
    """Every promise has to hold in each of these runs."""
    for seed in seeds:
        outcome = run(seed, room, steps)
        assert not outcome.broken, explain(outcome)


def shrink(outcome: Outcome, room: Room) -> Outcome:
    """The same seed with fewer kinds of faults and fewer steps, as long as it still breaks a promise."""
    smallest = outcome
    for kind in sorted(outcome.drawn):
        fewer = (smallest.kinds if smallest.kinds is not None else outcome.drawn) - {kind}
        tried = run(outcome.seed, room, smallest.steps, frozenset(fewer))
        smallest = tried if tried.broken else smallest
    steps = smallest.steps // 2
    while steps > 10 and (tried := run(outcome.seed, room, steps, smallest.kinds)).broken:
        smallest, steps = tried, steps // 2
    return smallest

"""The one command: start the engines, fill the stream, run the rivals in turns, report."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from attrs import evolve
from rich.console import Console

from ops.bench import report
from ops.bench.case import CASES
from ops.bench.meter import Sample
from ops.bench.ours import fill_log
from ops.bench.room import ROOT, Room, measure, template
from ops.bench.targets import targets
from ops.bench.workload import fill
from replicator.embedded.stack import Stack

DEFAULT_CASES = ("drain", "capture", "append", "insert", "deliver")
FROM_LOG = ("append", "insert", "deliver")


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--rows", default=200_000, show_default=True, help="Changes in the stream.")
@click.option("--rounds", default=3, show_default=True, help="Alternating rounds; medians count.")
@click.option("--encoding", type=click.Choice(["json", "flat", "arrow"]), default="json", show_default=True)
@click.option("--typed/--generic", default=False, help="Declare the table, or log it under change_log.")
@click.option("--name", default="", help="Name of the result file; default: what was measured.")
@click.option("--save/--no-save", "saved", default=True, show_default=True, help="Write ops/bench/results/<name>.json.")
def main(cases: Sequence[str], rows: int, rounds: int, encoding: str, typed: bool, name: str, saved: bool) -> None:
    """Measure CASES side by side (all: drain capture append insert deliver end_to_end handwritten:1000 …)."""
    chosen = cases or DEFAULT_CASES
    for case in chosen:
        if case.partition(":")[0] not in CASES:
            raise click.UsageError(f"{case} is none of {', '.join(CASES)}")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        directory = Path(temporary)
        with Stack(directory=directory / "stack") as stack:
            room = evolve(template(stack, directory), rows=rows, encoding=encoding, typed=typed)
            fill(room.redis_url, room.stream, encoding, rows)
            if any(case.partition(":")[0] in FROM_LOG for case in chosen):
                room = evolve(room, log_template=_filled_log(room))
            samples: dict[str, list[Sample]] = {}
            for each in _runs(room, chosen, rounds):
                sample = measure(each)
                samples.setdefault(_label(each, chosen), []).append(sample)
                console.print(f"{each.name}: {sample.rate:,.0f}/s, {sample.per_million(sample.cpu_seconds):.2f} s/M")
    whole = _whole(room, rounds, samples, name or f"{encoding}-{'typed' if typed else 'generic'}-{'-'.join(chosen)}")
    report.show(whole, console)
    if saved:
        console.print(f"written to {report.save(whole, Path(__file__).parent / 'results').relative_to(ROOT)}")


def _filled_log(room: Room) -> str:
    room.directory.mkdir(parents=True)
    return str(fill_log(room))


def _runs(room: Room, chosen: Sequence[str], rounds: int) -> Iterator[Room]:
    """Every case once per round, each in a room of its own."""
    for number in range(1, rounds + 1):
        for case in chosen:
            kind, _, batch = case.partition(":")
            unique = f"{kind}{batch}_{number}"
            each = evolve(room, name=unique, case=kind, directory=room.directory.parent / unique)
            yield evolve(each, batch_rows=int(batch)) if batch else each


def _label(room: Room, chosen: Sequence[str]) -> str:
    batch = f"{room.case}:{room.batch_rows}"
    label = f"{room.case} {room.batch_rows}" if batch in chosen else room.case
    return label if room.encoding == "json" else f"{label} {room.encoding}"


def _whole(room: Room, rounds: int, samples: Mapping[str, Sequence[Sample]], name: str) -> dict[str, Any]:
    return {
        "name": name,
        "rows": room.rows,
        "rounds": rounds,
        "encoding": room.encoding,
        "typed": room.typed,
        "environment": report.environment(),
        "cases": report.summary(samples),
        "ratios": report.ratios(samples),
        "samples": {case: [sample.as_dict() for sample in several] for case, several in samples.items()},
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["targets"]:
        targets(sys.argv[2:])
    main()

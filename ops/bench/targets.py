"""``python -m ops.bench targets``: the whole table of targets in one run, each held against its rival of the same round."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
from attrs import evolve, frozen
from rich.console import Console
from rich.table import Table

from ops.bench import plot, report
from ops.bench.large import big_log
from ops.bench.meter import Sample
from ops.bench.ours import fill_log
from ops.bench.room import Room, measure, template
from ops.bench.workload import fill
from replicator.embedded.stack import Stack

Samples = dict[str, list[Sample]]
RESULTS = Path(__file__).parent / "results"
JSON_CASES = ("drain", "capture", "append", "insert", "deliver", "end_to_end", "handwritten:10000")
ARROW_CASES = ("drain", "append", "capture")
SMALL_LOG = 1_000_000
LOOKS = ("capture_us", "deliver_us", "status_ms", "key_ms")


@frozen(kw_only=True)
class Target:
    """``reached`` finds the figure among the samples, NaN where it was not measured."""

    name: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    reached: Callable[[Mapping[str, Sequence[Sample]]], float]

    @property
    def wanted(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def passes(self, value: float) -> bool:
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)


def _paired(subject: str, against: str, figure: Callable[[Sample], float]) -> Callable[..., float]:
    """The median over the rounds of a figure of one case divided by the rival's of that round."""

    def found(samples: Mapping[str, Sequence[Sample]]) -> float:
        pairs = list(zip(samples.get(subject, ()), samples.get(against, ()), strict=False))
        return median(figure(one) / figure(other) for one, other in pairs) if pairs else math.nan

    return found


def _figure(case: str, name: str) -> Callable[..., float]:
    def found(samples: Mapping[str, Sequence[Sample]]) -> float:
        return median(s.more[name] for s in samples[case]) if samples.get(case) else math.nan

    return found


def _rate(sample: Sample) -> float:
    return sample.rate


def _cpu(sample: Sample) -> float:
    return sample.per_million(sample.cpu_seconds)


def _beside(name: str) -> Target:
    reached = _paired("beside large", "beside small", lambda sample: sample.more[name])
    what = {"capture_us": "capture", "deliver_us": "deliver", "status_ms": "status", "key_ms": "one key's state"}[name]
    return Target(name=f"{what} beside a large log, against 1 M", unit="×", at_most=1.1, reached=reached)


HAND, WHOLE = "handwritten 10000", "end_to_end"
TARGETS = (
    Target(name="capture of json, against the raw drain", unit="×", at_least=0.4, reached=_paired("capture", "drain", _rate)),
    Target(name="capture of arrow, against the bare append", unit="×", at_least=0.6, reached=_paired("capture arrow", "append arrow", _rate)),
    Target(name="deliver, against bare insert_arrow", unit="×", at_least=0.8, reached=_paired("deliver", "insert", _rate)),
    Target(name="our CPU end to end, against the hand-written consumer's", unit="×", at_most=0.38, reached=_paired(WHOLE, HAND, _cpu)),
    Target(name="events/s end to end, against the hand-written consumer", unit="×", at_least=4, reached=_paired(WHOLE, HAND, _rate)),
    Target(name="XADD to visible at 10k/s, p50", unit="ms", at_most=150, reached=_figure("latency", "p50_ms")),
    Target(name="XADD to visible at 10k/s, p99", unit="ms", at_most=400, reached=_figure("latency", "p99_ms")),
    *(_beside(name) for name in LOOKS),
    Target(name="peak memory with a large backlog", unit="MB", at_most=600, reached=lambda s: max((each.peak_mb for each in s.get("backlog", ())), default=math.nan)),
    Target(name="start to first delivered batch, large log", unit="s", at_most=1, reached=_figure("start", "seconds")),
    Target(name="idle, share of a core", unit="%", at_most=1, reached=_figure("idle", "cpu_percent")),
    Target(name="idle, memory grown", unit="MB", at_most=1, reached=_figure("idle", "grown_mb")),
)  # fmt: skip


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, help="Changes in the stream that rivals share.")
@click.option("--rounds", default=3, show_default=True, help="Alternating rounds; medians count.")
@click.option(
    "--rows-large", default=10_000_000, show_default=True, help="Changes in the large log and in the backlog."
)
@click.option("--idle-seconds", default=60.0, show_default=True, help="How long to watch it do nothing.")
@click.option("--latency-seconds", default=20.0, show_default=True, help="How long to send 10,000 events/s.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["json", "arrow", "latency", "large", "backlog", "idle"]),
    help="Only these parts.",
)
@click.option("--name", default="targets", show_default=True, help="Of the result files.")
def targets(
    rows: int, rounds: int, rows_large: int, idle_seconds: float, latency_seconds: float, only: Sequence[str], name: str
) -> None:
    """Measure every target; write results/<name>.json, .md and the plots."""
    console, samples = Console(), Samples()
    parts = {
        "json": lambda: _rivals(samples, console, "json", JSON_CASES, rows, rounds),
        "arrow": lambda: _rivals(samples, console, "arrow", ARROW_CASES, rows, rounds),
        "latency": lambda: _alone(samples, console, "latency", latency_seconds, rounds),
        "idle": lambda: _alone(samples, console, "idle", idle_seconds, 1),
        "large": lambda: _large(samples, console, rows_large, rounds),
        "backlog": lambda: _backlog(samples, console, rows_large),
    }  # fmt: skip
    for part, run in parts.items():
        if not only or part in only:
            console.rule(part)
            run()
    found = [{"name": t.name, "wanted": t.wanted, "unit": t.unit, "reached": t.reached(samples)} for t in TARGETS]
    _show(console, found)
    _save(name, {"rows": rows, "rows_large": rows_large, "rounds": rounds}, found, samples)


# ── the parts, each with engines of its own ──


def _rivals(samples: Samples, console: Console, encoding: str, cases: Sequence[str], rows: int, rounds: int) -> None:
    with _room(encoding=encoding, rows=rows, typed=True) as room:
        fill(room.redis_url, room.stream, encoding, rows)
        room.directory.mkdir(parents=True)
        filled = evolve(room, log_template=str(fill_log(room)))
        for number in range(1, rounds + 1):
            for case in cases:
                kind, _, batch = case.partition(":")
                each = evolve(filled, batch_rows=int(batch)) if batch else filled
                label = " ".join(filter(None, (kind, batch, encoding if encoding != "json" else "")))
                _measure(samples, console, each, kind, number, label)


def _alone(samples: Samples, console: Console, case: str, seconds: float, rounds: int) -> None:
    with _room(rows=1, typed=True) as room:
        for number in range(1, rounds + 1):
            each = evolve(room, stream=f"{case}{number}", interval_seconds=0.1, span_seconds=seconds)
            _measure(samples, console, each, case, number, case)


def _large(samples: Samples, console: Console, rows: int, rounds: int) -> None:
    stream_rows = 200_000
    with _room(rows=stream_rows, typed=True) as room:
        fill(room.redis_url, room.stream, "json", stream_rows)
        room.directory.mkdir(parents=True)
        small = big_log(room, room.directory / "small.duckdb", SMALL_LOG, delivered=True)
        large = big_log(room, room.directory / "large.duckdb", rows, delivered=True)
        for number in range(1, rounds + 1):
            for label, log in (("beside small", small), ("beside large", large)):
                _measure(samples, console, evolve(room, log_template=str(log)), "beside", number, label)
        large.unlink()
        waiting = big_log(room, room.directory / "waiting.duckdb", rows, delivered=False)
        for number in range(1, rounds + 1):
            each = evolve(room, log_template=str(waiting), stream="nothing")
            _measure(samples, console, each, "start", number, "start")


def _backlog(samples: Samples, console: Console, rows: int) -> None:
    with _room(rows=rows, typed=True) as room:
        fill(room.redis_url, room.stream, "json", rows)
        _measure(samples, console, room, "backlog", 1, "backlog")


@contextmanager
def _room(**about: Any) -> Iterator[Room]:
    with tempfile.TemporaryDirectory(prefix="bench") as temporary, Stack(directory=Path(temporary) / "stack") as stack:
        yield evolve(template(stack, Path(temporary)), **about)


def _measure(samples: Samples, console: Console, room: Room, case: str, number: int, label: str) -> None:
    unique = f"{label.replace(' ', '_')}_{number}"
    sample = measure(evolve(room, name=unique, case=case, directory=room.directory.parent / unique))
    samples.setdefault(label, []).append(sample)
    more = ", ".join(f"{name} {value:,.4g}" for name, value in sample.more.items())
    console.print(f"{label}: {sample.rate:,.0f}/s, {_cpu(sample):.2f} s/M, {sample.peak_mb:.0f} MB; {more}")


# ── the report ──


def _show(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    table = Table("what", "target", "reached", "")
    for row, target in zip(found, TARGETS, strict=True):
        verdict = "" if math.isnan(row["reached"]) else "yes" if target.passes(row["reached"]) else "no"
        table.add_row(row["name"], f"{row['wanted']} {row['unit']}", f"{row['reached']:.3g}", verdict)
    console.print(table)


def _save(name: str, about: Mapping[str, Any], found: Sequence[Mapping[str, Any]], samples: Samples) -> None:
    measured = [row for row in found if not math.isnan(row["reached"])]
    RESULTS.mkdir(exist_ok=True)
    whole = {**about, "environment": report.environment(), "targets": measured, "cases": report.summary(samples)}
    whole["samples"] = {case: [sample.as_dict() for sample in several] for case, several in samples.items()}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n")
    lines = ["| what | target | reached |", "|---|---|---|"]
    lines += [f"| {r['name']} | {r['wanted']} {r['unit']} | {r['reached']:.3g} {r['unit']} |" for r in measured]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    passes = {t.name: t for t in TARGETS}
    bars = [plot.Bar(r["name"], r["reached"], passes[r["name"]].at_least, passes[r["name"]].at_most) for r in measured]
    (RESULTS / f"{name}.svg").write_text(plot.bars("Reached, in parts of the target", bars))
    if samples.get("backlog"):
        held = {int(k[-3:]): v for k, v in samples["backlog"][0].more.items() if k.startswith("mb_at_")}
        (RESULTS / f"{name}-memory.svg").write_text(plot.line("MB held, by percent delivered", held))

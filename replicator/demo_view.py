"""What the demo shows: steps and three bars while it plays, one table and a verdict at the end; or one JSON object.

Progress goes to stderr, the result to stdout. It decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from replicator.demo import DemoReport, Gauges
from replicator.demo_compare import Difference, Held, TableResult

_BARS = {"written": "written to Redis", "logged": "logged in DuckDB", "delivered": "in ClickHouse"}


class DemoView:
    """A context manager around the play; ``changes`` is where the bars end."""

    def __init__(self, changes: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("  {task.description:<17}", markup=False),
            BarColumn(bar_width=40),
            TextColumn("{task.completed:>7,}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks = {name: self._bars.add_task(text, total=changes, visible=False) for name, text in _BARS.items()}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def step(self, text: str, *, bad: bool = False) -> None:
        mark = "[red]✗[/]" if bad else "[green]✓[/]"
        self._console.print(f"{mark} ", end="")
        self._console.print(text, markup=False, soft_wrap=True)

    def gauges(self, gauges: Gauges) -> None:
        for name, task in self._tasks.items():
            self._bars.update(task, completed=getattr(gauges, name), visible=True)


def print_report(report: DemoReport) -> None:
    """The table and the verdict, for people."""
    console = Console(highlight=False)
    console.print()
    console.print(_table(report.tables))
    for each in report.found:
        console.print(f"found: {each}", markup=False, soft_wrap=True)
    for problem in report.problems:
        console.print("[red]✗[/] ", end="")
        console.print(problem, markup=False, soft_wrap=True)
    if not report.problems:
        console.print(
            f"[bold green]✓[/] {report.changes:,} changes in {report.seconds:.0f} s, the service killed once on the "
            "way: nothing lost, nothing doubled, both sides equal, and the altered price was found.",
            soft_wrap=True,
        )
    if report.directory:
        console.print(f"kept: {report.directory}", markup=False, soft_wrap=True)


def _table(results: Sequence[TableResult]) -> Table:
    table = Table(title="Both sides compared", title_justify="left", title_style="bold")
    for column in ("table", "side"):
        table.add_column(column)
    for column in ("changes", "rows now"):
        table.add_column(column, justify="right")
    for column in ("checksum", ""):
        table.add_column(column)
    for result in results:
        sides = (("DuckDB", result.duckdb), ("ClickHouse", result.clickhouse))
        table.add_row(result.table, "produced", f"{result.produced:,}", f"{result.rows_expected:,}")
        for name, held in sides:
            last = name == sides[-1][0]
            table.add_row(
                "",
                name,
                f"{held.history.rows:,}",
                f"{held.current.rows:,}",
                f"{held.history.sum:016x}",
                "" if not last else "[red]DIFFER[/]" if result.problems else "[green]equal[/]",
                end_section=last,
            )
    return table


def report_json(report: DemoReport) -> str:
    """The report for machines: checksums as ``rows:sum:xor``, decimals as strings."""
    killed = report.killed_at
    return json.dumps(
        {
            "ok": not report.problems,
            "seconds": report.seconds,
            "changes": report.changes,
            "killed_at": killed and {name: getattr(killed, name) for name in _BARS},
            "tables": [
                {
                    "table": result.table,
                    "changes": result.produced,
                    "rows": result.rows_expected,
                    "duckdb": _held(result.duckdb),
                    "clickhouse": _held(result.clickhouse),
                    "equal": not result.problems,
                }
                for result in report.tables
            ],
            "altered": report.altered and _difference(report.altered),
            "found": [_difference(each) for each in report.found],
            "problems": list(report.problems),
            "directory": report.directory and str(report.directory),
        },
        indent=2,
    )


def _held(held: Held) -> dict[str, Any]:
    return {"stored_rows": held.stored, "history": str(held.history), "current": str(held.current)}


def _difference(each: Difference) -> dict[str, Any]:
    return {
        "table": each.table,
        "offset": each.offset,
        "key": each.key,
        "column": each.column,
        "duckdb": str(each.duckdb),
        "clickhouse": str(each.clickhouse),
    }

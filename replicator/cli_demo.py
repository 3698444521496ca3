"""``replicator demo``: the whole thing in half a minute, with its own Redis and ClickHouse, in its own directory.

Steps and bars on stderr, the result on stdout (or as JSON). Ends with 0 when everything held, 2 for a directory that
cannot be used or engines that are not installed, 3 when something would not start, 4 when something did not hold.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

CHANGES_MIN = 2000
"""Fewer would be over before there is anything to interrupt."""


@click.command("demo", short_help="See it work: a trade flow, a crash, and proof that both sides agree.")
@click.option("--keep", is_flag=True, help="Leave the directory behind, to look around in.")
@click.option("--directory", type=click.Path(path_type=Path), help="Use this new directory, and keep it.")
@click.option("--changes", type=click.IntRange(CHANGES_MIN, 1_000_000), default=20_000, show_default=True, help="How many changes to write.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(1, 600), default=12, show_default=True, help="How long to spread them over.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.pass_context
def demo_command(context: click.Context, as_json: bool, **options: Any) -> None:
    """Replicate orders, trades and positions of a small broker through a real service, and prove the result.

    Starts Redis and ClickHouse of its own on free ports, runs the service, kills it with -9 half-way and starts it
    again, then compares DuckDB and ClickHouse with each other and with what was produced; at last it alters one price
    in ClickHouse and finds it. No configuration or environment of yours is read, and nothing is left behind.
    """
    from replicator.demo_room import forget_environment  # noqa: PLC0415 - keeps `replicator --help` quick

    forget_environment(os.environ)
    from replicator.demo import DemoOptions, run_demo  # noqa: PLC0415
    from replicator.demo_view import DemoView, print_report, report_json  # noqa: PLC0415

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ✓ is no reason to fail
    chosen = DemoOptions(**options)
    with _stoppable(), DemoView(chosen.changes) as view:
        report = run_demo(chosen, view)
    if as_json:
        click.echo(report_json(report))
    else:
        print_report(report)
    context.exit(4 if report.problems else 0)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind as Ctrl-C does, so that everything is stopped in order."""

    def unwind(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)

"""``replicator verify``: prove that log and sink agree, and mend them where they do not.

Ends with 4 when anything is at fault, or is left at fault after ``--repair``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from replicator.cli_answer import answer, dry_run_option, json_option, printable, settings_of, table
from replicator.client import KINDS, Client, connect, local_actor
from replicator.config import Settings
from replicator.errors import DatabaseUnavailable, ReplicatorError

MISMATCH = 4
POLL_SECONDS = 0.2
SHOWN_MAX = 20
Show = Callable[[int, int, str], None]
"""Called with (rows compared, rows to compare, what is being compared)."""


@click.command("verify", short_help="Prove that log and sink agree, or mend them.")
@click.option("--table", "tables", multiple=True, help="Compare this table only. May be given again.")
@click.option("--from", "first", type=click.IntRange(1), default=1, help="First offset.  [default: the log's first]")
@click.option("--to", "last", type=click.IntRange(1), help="Last offset.  [default: the checkpoint]")
@click.option("--repair", is_flag=True, help="Mend what differs, on the side at fault, and compare again.")
@click.option("--quick", is_flag=True, help="Take the checksums frozen before sending for the log's.")
@dry_run_option
@json_option
@click.pass_context
def verify_command(
    context: click.Context,
    tables: tuple[str, ...],
    first: int,
    last: int | None,
    repair: bool,
    quick: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compare everything that was delivered with what ClickHouse holds, down to the row, the key and the ledger.

    Each row at fault is named with its kind (missing, extra, different, doubled), its side (the sink, or the log) and
    the columns that differ. With --repair exactly these are mended; --dry-run says what a repair would do.
    """
    if last is not None and last < first:
        raise click.UsageError(f"--to {last} lies before --from {first}")
    settings = settings_of(context)
    body = {"tables": list(tables), "first_offset": first, "last_offset": last, "quick": quick}
    body |= {"repair": repair or dry_run, "dry_run": dry_run}
    client = connect(settings)
    with progress_bar() as show:
        done = _ask(client, body, show) if client is not None else _run(settings, body, show)
    answer(done, as_json, _show_repair if repair or dry_run else _show)
    context.exit(MISMATCH if done["mismatches"] else 0)


def _ask(client: Client, body: dict[str, Any], show: Show) -> dict[str, Any]:
    job = client.post("/api/v1/verify", body)
    try:
        while job["state"] == "running":
            time.sleep(POLL_SECONDS)
            job = client.get(f"/api/v1/verify/{job['id']}")
            show(job["rows"], job["rows_expected"], job["what"])
    except KeyboardInterrupt:
        client.post(f"/api/v1/verify/{job['id']}/cancel", {})
        raise
    if job["error"] is not None:
        error = job["error"]
        raise KINDS.get(error["kind"], ReplicatorError)(error["message"], hint=error["hint"] or "")
    result: dict[str, Any] = job["result"]
    return result


def _run(settings: Settings, body: dict[str, Any], show: Show) -> dict[str, Any]:
    """Without a service: open the file here."""
    from replicator.service import Service  # noqa: PLC0415 - loads everything
    from replicator.service_verify import Task, Verification  # noqa: PLC0415
    from replicator.verify_report import VerifyRequest  # noqa: PLC0415

    path = settings.writer.database.path
    if not path.exists():
        raise DatabaseUnavailable(f"there is no database at {path} yet", hint="the first `replicator run` makes it")
    request = VerifyRequest(
        tables=tuple(body["tables"]), first=body["first_offset"], last=body["last_offset"], reread_log=not body["quick"]
    )
    task = Task(request=request, repair=body["repair"], dry_run=body["dry_run"], actor=local_actor())
    service = Service.build(settings)
    try:
        if task.repair and not task.dry_run:
            service.ownership.acquire(service.stop)
        return Verification(service=service).run(task, lambda p: show(p.rows, p.rows_expected, p.what))
    finally:
        service.shut_down()


@contextmanager
def progress_bar() -> Iterator[Show]:
    """A bar with rate and estimate on stderr, where somebody can see it."""
    if not sys.stderr.isatty():
        yield lambda rows, expected, what: None  # noqa: ARG005
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed:,.0f} rows"),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verify", total=None, rate="")

        def show(rows: int, expected: int, what: str) -> None:
            rate = rows / max(0.001, time.monotonic() - started)
            bar.update(
                task, description=what or "verify", completed=rows, total=expected or None, rate=f"{rate:,.0f}/s"
            )

        yield show


# ── for people ──


def _show(report: dict[str, Any]) -> None:
    names = ("table", "offsets", "rows", "keys", "mismatches")
    rows = [
        [t["table"], _span(t["first_offset"], t["last_offset"]), t["rows"], t["keys"], t["mismatches"]]
        for t in report["tables"]
    ]
    table(names, rows, empty="nothing was delivered yet")
    for found in report["tables"]:
        _show_table(found)
    for problem in report["problems"]:
        _show_problem(problem)
    verdict = f"{report['mismatches']:,} mismatches" if report["mismatches"] else "log and sink agree"
    click.echo(f"{verdict}: {report['rows']:,} rows compared in {report['seconds']:.1f} s")


def _span(first: int | None, last: int | None) -> str:
    return "" if first is None else f"{first:,}..{last:,}"


def _show_table(found: dict[str, Any]) -> None:
    name = found["table"]
    for fault in found["faults"]:
        ranges = ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in fault["ranges"][:SHOWN_MAX])
        click.echo(f"{name}: {fault['rows']:,} rows {fault['kind']}, {_blame(fault['side'])}: offsets {ranges}")
    for row in found["rows_at_fault"][:SHOWN_MAX]:
        for column, sides in row["columns"].items():
            log, sink = printable(str(sides["log"])), printable(str(sides["sink"]))
            click.echo(f"  {row['offset']} {printable(row['key'] or '')} {column}: log {log}, sink {sink}")
    for key in found["state"][:SHOWN_MAX]:
        click.echo(f"{name}: current row of key {printable(str(key['key']))} is {key['kind']}, {_blame(key['side'])}")
    for each in found["breaks"][:SHOWN_MAX]:
        group = ", ".join(f"{n} {printable(str(v))}" for n, v in each["group"].items()) or "all"
        click.echo(f"{name}: break in {each['column']} of {group}: log {each['log']}, sink {each['sink']}")
    for problem in found["problems"]:
        _show_problem(problem)


def _blame(side: str) -> str:
    return {"sink": "the sink is at fault", "log": "the log is at fault"}.get(side, "neither side is what was frozen")


def _show_problem(problem: dict[str, Any]) -> None:
    click.echo(f"{problem['invariant']}: {printable(problem['detail'])}")
    if problem["hint"]:
        click.echo(f"  → {problem['hint']}")


def _show_repair(report: dict[str, Any]) -> None:
    _show(report["before"])
    plan = report["plan"]
    would = "would be " if report["dry_run"] else ""
    for each in plan["tables"]:
        parts = [
            f"{each[name]:,} {words}"
            for name, words in (
                ("send_again", f"rows {would}sent again"),
                ("remove_from_sink", f"rows {would}archived and removed from ClickHouse"),
                ("fetch_into_log", f"changes {would}fetched back into the log"),
                ("remove_from_log", f"changes {would}archived and removed from the log"),
                ("keys_in_sink", f"current rows {would}renewed in ClickHouse"),
                ("keys_in_log", f"current rows {would}rebuilt in DuckDB"),
                ("records", f"batch records {would}corrected"),
            )
            if each[name]
        ]
        click.echo(f"{each['table']}: {', '.join(parts) or 'its records are put right'}")
    for text in plan["left_alone"]:
        click.echo(f"left alone: {printable(text)}")
    if report["after"] is not None:
        click.echo(
            f"repaired: {report['sent_rows']:,} rows sent, {report['removed_rows']:,} removed, {report['log_rows']:,} put "
            f"right in the log; {report['mismatches']:,} mismatches left"
        )

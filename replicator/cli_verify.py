"""``replicator verify``: prove that log and sink agree, and mend them where they do not.

Ends with 4 when anything is at fault, or is left at fault after ``--repair``.
"""

from __future__ import annotations

from typing import Any

import click

from replicator.cli_answer import (
    answer,
    confirm,
    dry_run_option,
    json_option,
    printable,
    settings_of,
    table,
    yes_option,
)
from replicator.cli_progress import MISMATCH, Show, follow, progress_bar
from replicator.cli_service import opened_service
from replicator.client import connect, local_actor
from replicator.config import Settings
from replicator.words import counted

SHOWN_MAX = 20


@click.command("verify", short_help="Prove that log and sink agree, or mend them.")
@click.option("--table", "tables", multiple=True, help="Compare this table only. May be given again.")
@click.option("--from", "first", type=click.IntRange(1), default=1, help="First offset.  [default: the log's first]")
@click.option("--to", "last", type=click.IntRange(1), help="Last offset.  [default: the checkpoint]")
@click.option("--repair", is_flag=True, help="Mend what differs, on the side at fault, and compare again.")
@click.option("--quick", is_flag=True, help="Take the checksums frozen before sending for the log's.")
@dry_run_option
@yes_option
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
    yes: bool,
    as_json: bool,
) -> None:
    """Compare everything that was delivered with what ClickHouse holds, down to the row, the key and the ledger.

    Each row at fault is named with its kind (missing, extra, different, doubled), its side (the sink, or the log) and
    the columns that differ. With --repair exactly these are mended, once you have said yes; --dry-run says what a
    repair would do.
    """
    if last is not None and last < first:
        raise click.UsageError(f"--to {last} lies before --from {first}")
    if repair:
        confirm("Remove and rewrite rows on the side at fault?", {"yes": yes, "dry_run": dry_run})
    settings = settings_of(context)
    body = {"tables": list(tables), "first_offset": first, "last_offset": last, "quick": quick}
    body |= {"repair": repair or dry_run, "dry_run": dry_run}
    client = connect(settings)
    with progress_bar("verify") as show:
        done = follow(client, "verify", body, show) if client is not None else _run(settings, body, show)
    answer(done, as_json, _show_repair if repair or dry_run else _show)
    context.exit(MISMATCH if done["mismatches"] else 0)


def _run(settings: Settings, body: dict[str, Any], show: Show) -> dict[str, Any]:
    """Without a service: open the file here."""
    from replicator.service_job import Jobs  # noqa: PLC0415 - loads everything
    from replicator.service_verify import Task, Verification  # noqa: PLC0415
    from replicator.verify_report import VerifyRequest  # noqa: PLC0415

    request = VerifyRequest(
        tables=tuple(body["tables"]), first=body["first_offset"], last=body["last_offset"], reread_log=not body["quick"]
    )
    task = Task(request=request, repair=body["repair"], dry_run=body["dry_run"], actor=local_actor())
    with opened_service(settings, owned=task.repair and not task.dry_run) as service:
        jobs = Jobs(database=service.database, stop=service.stop)
        return Verification(service=service, jobs=jobs).run(task, lambda p: show(p.rows, p.rows_expected, p.what))


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
    for note in report["notes"]:
        click.echo(f"note: {printable(note)}")
    verdict = counted(report["mismatches"], "mismatch", "mismatches") if report["mismatches"] else "log and sink agree"
    click.echo(f"{verdict}: {counted(report['rows'], 'row')} compared in {report['seconds']:.1f} s")


def _span(first: int | None, last: int | None) -> str:
    return "" if first is None else f"{first:,}..{last:,}"


def _show_table(found: dict[str, Any]) -> None:
    name = found["table"]
    for fault in found["faults"]:
        ranges = ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in fault["ranges"][:SHOWN_MAX])
        click.echo(
            f"{name}: {counted(fault['rows'], 'row')} {fault['kind']}, {_blame(fault['side'])}: offsets {ranges}"
        )
    for row in found["rows_at_fault"][:SHOWN_MAX]:
        for column, sides in row["columns"].items():
            log, sink = _value(sides["log"]), _value(sides["sink"])
            click.echo(f"  {row['offset']} {printable(row['key'] or '')} {column}: log {log}, sink {sink}")
    for key in found["state"][:SHOWN_MAX]:
        click.echo(f"{name}: current row of key {printable(str(key['key']))} is {key['kind']}, {_blame(key['side'])}")
    for each in found["breaks"][:SHOWN_MAX]:
        group = ", ".join(f"{n} {_value(v)}" for n, v in each["group"].items()) or "all"
        log, sink = (side or "absent" for side in (each["log"], each["sink"]))
        click.echo(f"{name}: break in {each['column']} of {group}: log {log}, sink {sink}")
    for problem in found["problems"]:
        _show_problem(problem)


def _value(text: str | None) -> str:
    return "NULL" if text is None else printable(text)


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
            f"{counted(each[name], noun)} {would}{done}"
            for name, noun, done in (
                ("send_again", "row", "sent again"),
                ("remove_from_sink", "row", "archived and removed from ClickHouse"),
                ("fetch_into_log", "change", "fetched back into the log"),
                ("remove_from_log", "change", "archived and removed from the log"),
                ("keys_in_sink", "current row", "renewed in ClickHouse"),
                ("keys_in_log", "current row", "rebuilt in DuckDB"),
                ("records", "batch record", "corrected"),
            )
            if each[name]
        ]
        click.echo(f"{each['table']}: {', '.join(parts) or 'its records are put right'}")
    for text in plan["left_alone"]:
        click.echo(f"left alone: {printable(text)}")
    if report["after"] is not None:
        click.echo(
            f"repaired: {counted(report['sent_rows'], 'row')} sent, {report['removed_rows']:,} removed, "
            f"{report['log_rows']:,} put right in the log; "
            f"{counted(report['mismatches'], 'mismatch', 'mismatches')} left"
        )

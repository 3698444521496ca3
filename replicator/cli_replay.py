"""``replicator replay``: send logged changes to ClickHouse again, beside the live stream."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli_answer import answer, dry_run_option, json_option, printable, settings_of, table
from replicator.cli_progress import MISMATCH, Show, follow, progress_bar
from replicator.cli_service import opened_service
from replicator.client import connect, local_actor
from replicator.config import Settings
from replicator.words import counted


@click.command("replay", short_help="Send a range to ClickHouse again.")
@click.option("--from", "first", metavar="OFFSET|TIME", help="First offset, or the first logged from an instant on.")
@click.option(
    "--to", "last", metavar="OFFSET|TIME", help="Last offset, or the last by an instant.  [default: the checkpoint]"
)
@click.option("--table", "tables", multiple=True, help="Of this table only. May be given again.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Rows per second at most.  [default: as fast as it goes]",
)
@click.option("--resume", is_flag=True, help="Go on with the replay that was cut short.")
@dry_run_option
@json_option
@click.pass_context
def replay_command(context: click.Context, as_json: bool, **asked: Any) -> None:
    """Send delivered changes again, under a new send and with their old versions, so that no stale row wins.

    With --dry-run it says what that would be, what ClickHouse has of it, and what stands against it: it ends with 0
    where a replay is safe and with 4 where it is not. Nothing is destroyed, and no checkpoint moves.
    """  # fmt: skip
    if (asked["first"] is None) is not asked["resume"]:
        raise click.UsageError("say where to begin, --from OFFSET or --from TIME, or go on with --resume")
    if asked["resume"] and (asked["dry_run"] or asked["tables"] or asked["last"] or asked["rate"]):
        raise click.UsageError("--resume goes on as it was begun: leave the other options out")
    settings = settings_of(context)
    body = {**asked, "tables": list(asked["tables"])}
    client = connect(settings)
    with progress_bar("replay") as show:
        done = follow(client, "replay", body, show) if client is not None else _run(settings, body, show)
    answer(done, as_json, _show)
    context.exit(0 if done.get("safe", True) else MISMATCH)


def _run(settings: Settings, body: dict[str, Any], show: Show) -> dict[str, Any]:
    """Without a service: open the file here."""
    from replicator.replay_plan import ReplayRequest  # noqa: PLC0415 - loads everything
    from replicator.service_job import Jobs  # noqa: PLC0415
    from replicator.service_replay import Replaying, ReplayTask  # noqa: PLC0415

    request = None
    if not body["resume"]:
        request = ReplayRequest(first=body["first"], last=body["last"], tables=tuple(body["tables"]), rate=body["rate"])
    task = ReplayTask(request=request, dry_run=body["dry_run"], actor=local_actor())
    with opened_service(settings, owned=not task.dry_run) as service:
        jobs = Jobs(database=service.database, stop=service.stop)
        replaying = Replaying(service=service, jobs=jobs)
        return replaying.run(task, lambda p: show(p.rows, p.rows_expected, p.what))


# ── for people ──


def _show(done: dict[str, Any]) -> None:
    names = ("table", "offsets", "batches", "rows", "bytes", "in ClickHouse", "left out")
    rows = [
        [t["table"], f"{t['first_offset']:,}..{t['last_offset']:,}" if t["batches"] else "", t["batches"], t["rows"],
         t["bytes"], t["rows_in_sink"], t["rows_left_out"]]
        for t in done.get("tables", [])
    ]  # fmt: skip
    if rows:
        table(names, rows)
    for found in done.get("tables", []):
        for text in found["conflicts"]:
            click.echo(f"{found['table']}: {printable(text)}")
    for text in done.get("conflicts", []):
        click.echo(printable(text))
    if not done.get("dry_run"):
        click.echo(f"replay {done['replay']}: {counted(done['sent_rows'], 'row')} sent in {done['seconds']:.1f} s")
    else:
        click.echo(f"safe: {counted(done['rows'], 'row')} would be sent again" if done["safe"] else "not safe")

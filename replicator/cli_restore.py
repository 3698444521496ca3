"""``replicator restore``: the DuckDB file is gone; fill a new one from ClickHouse."""

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
from replicator.cli_progress import MISMATCH, progress_bar
from replicator.client import database_in_use, local_actor
from replicator.errors import UsageError
from replicator.words import counted


@click.command("restore", short_help="Fill a lost DuckDB file from ClickHouse.")
@dry_run_option
@yes_option
@json_option
@click.pass_context
def restore_command(context: click.Context, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Rebuild the log, the streams' positions, the delivery records and the current rows from ClickHouse.

    For when the DuckDB file is lost. It takes the pipeline over from the lost file's instance, compares both sides, and
    says what only the lost file can have had; `replicator run` then reads on from Redis where the delivered log ends.
    Ends with 4 when the comparison finds anything at fault.
    """
    confirm("Take this pipeline over from the lost file's instance?", {"yes": yes, "dry_run": dry_run})
    settings = settings_of(context)
    if database_in_use(settings):
        raise UsageError(
            f"{settings.writer.database.path} is in use: a restore needs a file of its own",
            hint="stop the service first; a file that is in use is not lost",
        )
    from replicator.service_restore import restore  # noqa: PLC0415 - loads everything

    with progress_bar("restore") as show:
        done = restore(settings, actor=local_actor(), dry_run=dry_run, watch=show)
    answer(done, as_json, _show_plan if dry_run else _show)
    context.exit(MISMATCH if done.get("mismatches") else 0)


def _show_plan(found: dict[str, Any]) -> None:
    rows = [[t["table"], t["delivered_through"], t["top_offset"]] for t in found["tables"]]
    table(("table", "delivered through", "highest offset"), rows)
    changes = counted(found["changes_restored"], "change")
    click.echo(
        f"{changes} would be logged again, up to offset {found['head_offset']:,}, on timeline {found['timeline']}"
    )
    _show_lost(found, would="would be")


def _show(done: dict[str, Any]) -> None:
    are = "is" if done["changes_restored"] == 1 else "are"
    click.echo(
        f"{counted(done['changes_restored'], 'change')} {are} logged again, up to offset {done['head_offset']:,}, on "
        f"timeline {done['timeline']}; {counted(done['rows_verified'], 'row')} compared, "
        f"{counted(done['mismatches'], 'mismatch', 'mismatches')}"
    )
    if done["taken_from"]:
        click.echo(f"the pipeline belonged to instance {printable(done['taken_from'])}")
    _show_lost(done, would="will be")


def _show_lost(done: dict[str, Any], *, would: str) -> None:
    """What only the lost file can have had. The same of a restore and of a look before it."""
    runs = ", ".join(f"{a}..{b}" for a, b in done["undelivered_offsets"]) or "none"
    if done["changes_undelivered"] is None:
        click.echo("Redis does not know how far the lost log had come: changes beyond ClickHouse's are not known")
    else:
        click.echo(f"logged but never delivered: {counted(done['changes_undelivered'], 'change')}, offsets {runs}")
    for stream in done["streams"]:
        if stream["undelivered_may_be_gone"]:
            behind, before = stream["after_entry_id"], stream["before_entry_id"] or "the stream's end"
            name = printable(stream["stream"])
            click.echo(f"{name}: what was undelivered between {behind} and {before} may be gone from Redis")
        elif done["changes_undelivered"]:
            name = printable(stream["stream"])
            click.echo(f"{name}: what was undelivered is still in Redis and {would} read again")
    click.echo("not restored, since nobody else has it:")
    for text in done["not_restored"]:
        click.echo(f"  {text}")

"""``replicator rebuild``: make a table in ClickHouse anew and put it in the old one's place."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli_answer import answer, confirm, dry_run_option, json_option, printable, settings_of, yes_option
from replicator.cli_progress import MISMATCH, Show, follow, progress_bar
from replicator.cli_service import opened_service
from replicator.client import connect, local_actor
from replicator.config import Settings
from replicator.words import counted


@click.command("rebuild", short_help="Make a table in ClickHouse anew, from the log.")
@click.argument("table", metavar="TABLE")
@dry_run_option
@yes_option
@json_option
@click.pass_context
def rebuild_command(context: click.Context, table: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Make TABLE in ClickHouse anew from the log, compare it, and put it in the old one's place in one step.

    The stream goes on and readers see the old table or the new one, never less. The old one is kept until the next
    verify finds the new one right. What the log no longer holds comes from the old table. Where replicator.toml declares
    TABLE otherwise than it is (a narrower type, a column less, another key), it becomes what is declared, if everything
    logged fits: --dry-run says so, and ends with 4 where it does not.
    """
    confirm(f"Replace {table} in ClickHouse?", {"yes": yes, "dry_run": dry_run})
    settings = settings_of(context)
    client = connect(settings)
    with progress_bar("rebuild") as show:
        if client is not None:
            done = follow(client, "rebuild", {"table": table, "dry_run": dry_run}, show)
        else:
            done = _run(settings, table, dry_run, show)
    answer(done, as_json, _show)
    context.exit(0 if done["safe"] else MISMATCH)


def _run(settings: Settings, table: str, dry_run: bool, show: Show) -> dict[str, Any]:
    """Without a service: open the file here, with the table as the file has it."""
    from replicator.service_job import Jobs  # noqa: PLC0415 - loads everything
    from replicator.service_rebuild import Rebuilding, RebuildTask  # noqa: PLC0415

    task = RebuildTask(table=table, settings=settings, dry_run=dry_run, actor=local_actor())
    with opened_service(settings, owned=not dry_run, kept=(table,)) as service:
        jobs = Jobs(database=service.database, stop=service.stop)
        return Rebuilding(service=service, jobs=jobs).run(task, lambda p: show(p.rows, p.rows_expected, p.what))


def _show(done: dict[str, Any]) -> None:
    for text in done["changes"]:
        click.echo(printable(text))
    for text in done["problems"]:
        click.echo(f"cannot be done: {printable(text)}")
    from_log, from_old = done["rows_from_log"], done["rows_from_old_table"]
    if not done["dry_run"]:
        click.echo(f"{done['table']} is made anew: {counted(done['copied_rows'], 'row')} copied and compared")
    elif done["safe"]:
        click.echo(f"safe: {counted(from_log, 'row')} would come from the log, {from_old:,} from the old table")

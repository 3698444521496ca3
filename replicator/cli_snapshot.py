"""``replicator snapshot``: take a read-only copy for programs that read."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli_answer import answer, json_option, settings_of
from replicator.cli_progress import follow, progress_bar
from replicator.cli_service import opened_service
from replicator.client import connect, local_actor
from replicator.config import Settings


@click.command("snapshot", short_help="Take a read-only copy of the current rows.")
@click.option(
    "--log-changes",
    type=click.IntRange(min=0),
    help="Beside the current rows, so many of the newest changes.  [default: [snapshots] log_changes]",
)
@json_option
@click.pass_context
def snapshot_command(context: click.Context, log_changes: int | None, as_json: bool) -> None:
    """Take a consistent copy, a DuckDB file of its own that DuckDB 1.0 and newer can read, while the service goes on.

    It holds every T (with T_state) as of one offset, with --log-changes also T_log and change_log, and meta, which says
    of when it is. Of the older ones `[snapshots] keep` stay; one that is open somewhere stays until it is closed.
    """
    settings = settings_of(context)
    client = connect(settings)
    with progress_bar("snapshot") as show:
        if client is not None:
            done = follow(client, "snapshot", {"log_changes": log_changes}, show)
        else:
            done = _run(settings, settings.snapshots.log_changes if log_changes is None else log_changes)
    answer(done, as_json, _show)


def _run(settings: Settings, log_changes: int) -> dict[str, Any]:
    """Without a service: open the file here."""
    from replicator.service_job import Jobs  # noqa: PLC0415 - loads everything
    from replicator.service_snapshot import Snapshots, SnapshotTask  # noqa: PLC0415

    with opened_service(settings, owned=False) as service:
        jobs = Jobs(database=service.database, stop=service.stop)
        task = SnapshotTask(log_changes=log_changes, actor=local_actor())
        return Snapshots(service=service, jobs=jobs).run(task)


def _show(done: dict[str, Any]) -> None:
    click.echo(done["path"])
    click.echo(f"{done['rows']:,} rows as of offset {done['head_offset']:,}, {done['bytes'] / 1e6:,.1f} MB", err=True)

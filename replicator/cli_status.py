"""``replicator status``: how the pipeline stands, once or live, for people, programs and monitoring.

Ends with 0 once it has answered; with ``--check`` 0 ok, 1 degraded, 2 failed. Without a running service it tells what
the file tells, and that no service runs.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click

from replicator.cli_answer import json_option, local_database, print_json, printable, settings_of
from replicator.client import connect
from replicator.config import Settings
from replicator.errors import ReplicatorError

CHECK_CODES = {"ok": 0, "degraded": 1, "failed": 2}
WATCH_SECONDS = 1.0


@click.command("status", short_help="Show how the pipeline stands.")
@json_option
@click.option("--check", is_flag=True, help="End with 0 ok, 1 degraded, 2 failed, as monitoring plugins do.")
@click.option("--watch", is_flag=True, help="Show it live until Ctrl-C.")
@click.pass_context
def status_command(context: click.Context, as_json: bool, check: bool, watch: bool) -> None:
    """Show how the pipeline stands: streams, log, delivery, what is parked, rejected or lost, and what to do."""
    if watch and (as_json or check):
        raise click.UsageError("--watch shows it to a person: leave --json and --check out")
    settings = settings_of(context)
    if watch:
        with contextlib.suppress(KeyboardInterrupt):  # that is how a watch ends
            _watch(settings)
        return
    try:
        report = read_report(settings)
    except ReplicatorError as error:
        if not check:
            raise
        click.echo(f"FAILED: {error}")
        context.exit(CHECK_CODES["failed"])
    if as_json:
        print_json(report)
    elif check:
        click.echo(f"{report['state'].upper()}: {'; '.join(report['reasons']) or 'everything is as it should be'}")
    else:
        show(report)
    context.exit(CHECK_CODES[report["state"]] if check else 0)


def read_report(settings: Settings) -> dict[str, Any]:
    """The report of the running service, or of the file."""
    client = connect(settings)
    if client is not None:
        answer: dict[str, Any] = client.get("/api/v1/status")
        return answer
    from replicator.status_file import empty_report, file_report  # noqa: PLC0415 - loads DuckDB

    if not settings.writer.database.path.exists():
        return empty_report(settings).as_json()
    with local_database(settings) as database:
        return file_report(settings, database).as_json()


def show(report: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed with --json

    Console().print(render(report))


def _watch(settings: Settings) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    with Live(console=Console(), screen=False, auto_refresh=False) as live:
        while True:
            try:
                live.update(render(read_report(settings)), refresh=True)
            except ReplicatorError as error:
                live.update(f"[red]{printable(str(error))}[/red]", refresh=True)
            time.sleep(WATCH_SECONDS)


def render(report: dict[str, Any]) -> Any:
    """The report for a person."""
    from replicator.cli_status_view import whole  # noqa: PLC0415 - loads rich

    return whole(report)

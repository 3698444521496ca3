"""``replicator sync``, ``pause`` and ``resume``."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli_answer import answer, json_option, service_or_file, settings_of
from replicator.client import connect, local_actor
from replicator.config import Settings
from replicator.words import counted

UNAVAILABLE = 3
ANSWER_SECONDS = 20.0


@click.command("sync", short_help="Deliver what is waiting, now.")
@click.option("--timeout", type=click.FloatRange(0, 600), default=60, show_default=True, help="Seconds to wait for it.")
@json_option
@click.pass_context
def sync_command(context: click.Context, timeout: float, as_json: bool) -> None:
    """Deliver what is waiting, now: everything that is in the log at this moment.

    Cuts short the wait after a failure. Without a running service it opens the file and delivers by itself. Ends with
    3 when time was up before ClickHouse had everything.
    """
    settings = settings_of(context)
    client = connect(settings)
    if client is not None:
        wait = timeout + ANSWER_SECONDS
        done = client.post("/api/v1/sync", {"timeout_seconds": timeout}, timeout_seconds=wait)
    else:
        done = _sync_file(settings, timeout)
    answer(done, as_json, _show_sync)
    context.exit(0 if done["delivered"] else UNAVAILABLE)


def _sync_file(settings: Settings, timeout_seconds: float) -> dict[str, Any]:
    from replicator.service_alone import sync_once  # noqa: PLC0415 - loads everything

    return sync_once(settings, actor=local_actor(), timeout_seconds=timeout_seconds)


def _show_sync(done: dict[str, Any]) -> None:
    what = counted(done["head_offset"] - done["from_offset"], "change") if done["delivered"] else "not everything"
    click.echo(
        f"delivered {what} in {done['seconds']:.1f} s: checkpoint {done['checkpoint_offset']:,} of "
        f"{done['head_offset']:,}"
    )
    if done["parked_rows"]:
        are = "is" if done["parked_rows"] == 1 else "are"
        click.echo(f"{counted(done['parked_rows'], 'row')} {are} parked: replicator failed list", err=True)
    if done["waits_for"]:
        click.echo(f"  → {done['waits_for']}", err=True)


@click.command("pause", short_help="Pause capture, delivery or one table.")
@click.argument("subject")
@json_option
@click.pass_context
def pause_command(context: click.Context, subject: str, as_json: bool) -> None:
    """Pause SUBJECT: `capture`, `deliver`, or a table's name. It stays paused over restarts until `resume`."""
    _switch(context, "pause", subject, as_json)


@click.command("resume", short_help="Resume what was paused.")
@click.argument("subject")
@json_option
@click.pass_context
def resume_command(context: click.Context, subject: str, as_json: bool) -> None:
    """Resume SUBJECT: `capture`, `deliver`, or a table's name."""
    _switch(context, "resume", subject, as_json)


def _switch(context: click.Context, verb: str, subject: str, as_json: bool) -> None:
    done = service_or_file(
        settings_of(context),
        remote=lambda client: client.post(f"/api/v1/{verb}", {"subject": subject}),
        local=lambda ops: getattr(ops, verb)(subject, actor=local_actor()),
    )
    answer(done, as_json, _show_switch)


def _show_switch(done: dict[str, Any]) -> None:
    now = "paused" if done["paused"] else "running"
    what = done["subject"].replace("table:", "table ", 1)
    click.echo(f"{what} is {now}" if done["changed"] else f"{what} was already {now}")

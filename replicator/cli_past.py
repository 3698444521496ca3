"""``replicator state`` and ``replicator trace``: a table as it was, and what happened to one change."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from replicator.cli_answer import answer, json_option, printable, settings_of, table
from replicator.client import Client, connect
from replicator.config import Settings
from replicator.errors import DatabaseUnavailable
from replicator.words import counted

if TYPE_CHECKING:
    from replicator.service import Service

ANSWER_SECONDS = 120.0


@click.command("state", short_help="Show a table as it is, or as it was.")
@click.argument("name", metavar="TABLE")
@click.option("--as-of", metavar="OFFSET|TIME", help="An offset, or an instant such as 2026-11-23T10:00:00Z.")
@click.option("--key", help="This key only: its text, or a JSON array for several columns.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Rows at most.")
@json_option
@click.pass_context
def state_command(
    context: click.Context, name: str, as_of: str | None, key: str | None, limit: int, as_json: bool
) -> None:
    """Show the rows of TABLE as they were when an offset, or by an instant, had been logged.

    The same in SQL, in DuckDB: `from trades_as_of(12345)`, `from trades_as_of_time(timestamp '2026-11-23 10:00:00')`.
    """

    def local(service: Service) -> dict[str, Any]:
        from replicator.service_past import state_answer  # noqa: PLC0415 - loads DuckDB

        return state_answer(service, name, as_of=as_of, key=key, limit=limit)

    def remote(client: Client) -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/api/v1/state/{quote(name, safe='')}", as_of=as_of, key=key, limit=limit)
        return found

    answer(_answered(settings_of(context), remote, local), as_json, _show_state)


@click.command("trace", short_help="Show what happened to one change.")
@click.argument("text", metavar="ID|KEY|OFFSET")
@click.option("--table", "name", help="Of this table only.")
@json_option
@click.pass_context
def trace_command(context: click.Context, text: str, name: str | None, as_json: bool) -> None:
    """Show the way of a change: Redis entry, offset, batch, attempts, ClickHouse query, each with its time.

    It is named by its offset, its idempotency id, its Redis entry id or its key; of a key the newest changes are shown.
    """

    def local(service: Service) -> dict[str, Any]:
        from replicator.service_past import trace_answer  # noqa: PLC0415 - loads DuckDB

        return trace_answer(service, text, table=name)

    def remote(client: Client) -> dict[str, Any]:
        found: dict[str, Any] = client.get("/api/v1/trace", text=text, table=name)
        return found

    answer(_answered(settings_of(context), remote, local), as_json, _show_trace)


def _answered(
    settings: Settings, remote: Callable[[Client], dict[str, Any]], local: Callable[[Service], dict[str, Any]]
) -> dict[str, Any]:
    """The running service's answer, or that of the file."""
    client = connect(settings)
    if client is not None:
        client.timeout_seconds = ANSWER_SECONDS
        return remote(client)
    from replicator.service import Service  # noqa: PLC0415 - loads everything

    path = settings.writer.database.path
    if not path.exists():
        raise DatabaseUnavailable(f"there is no database at {path} yet", hint="the first `replicator run` makes it")
    service = Service.build(settings)
    try:
        return local(service)
    finally:
        service.shut_down()


def _show_state(found: dict[str, Any]) -> None:
    table(found["columns"], found["rows"], empty="no rows")
    click.echo(f"{found['table']} as of offset {found['as_of_offset']:,}: {counted(len(found['rows']), 'row')} shown")
    if found["more"]:
        click.echo("  → there are more: raise --limit, or ask with --key", err=True)


# ── a trace, for people ──


def _show_trace(found: dict[str, Any]) -> None:
    if len(found["changes"]) == 1:
        _show_change(found["changes"][0])
    elif found["changes"]:
        table(("offset", "table", "op", "key", "logged", "standing"), [_line(change) for change in found["changes"]])
        click.echo("  → name an offset for all that is known of it", err=True)
    for entry in found["rejected"]:
        reason = printable(entry["reason"])
        click.echo(f"rejected entry {entry['id']} ({entry['status']}) at {entry['rejected_at']}: {reason}")
    if found["more"]:
        click.echo("  → there are older ones: name an offset, or a --table", err=True)


def _line(change: dict[str, Any]) -> list[Any]:
    """One of many changes."""
    batch, parked = change["batch"], [f for f in change["failed_syncs"] if f["status"] != "resolved"]
    if parked:
        standing = f"parked ({parked[-1]['status']})"
    elif batch is None or not batch["delivered_at"]:
        standing = "not yet" if batch is None or not change["failed_syncs"] else "once parked, now resolved"
    else:
        standing = f"delivered {batch['delivered_at']}"
    current = ", the current row" if change["sink"].get("current") else ""
    names = ("offset", "table", "op", "key", "logged_at")
    return [*(change[name] for name in names), f"{standing}{current}"]


def _show_change(change: dict[str, Any]) -> None:
    key = printable(change["key"] or "")
    click.echo(f"offset {change['offset']}  {change['table']} {change['op']} {key}  version {change['version']}")
    entry = f"stream {printable(change['stream'])} entry {change['entry_id']} row {change['entry_row']}"
    event = f", id {printable(change['event_id'])}" if change["event_id"] else ""
    click.echo(f"  produced   {change['event_at'] or '(no time given)'}  {entry}{event}")
    click.echo(f"  logged     {change['logged_at']}")
    _show_batch(change)
    sink = change["sink"]
    if "error" in sink:
        click.echo(f"  ClickHouse does not say: {printable(sink['error'])}")
        return
    for each in sink["attempts"] or ():
        failed = "" if each["outcome"] == "done" else f" failed, code {each['error_code'] or 'unknown'}"
        span = f"{each['first_offset']}..{each['last_offset']}"
        sent = f"{span}, {_send(each['send'])}, attempt {each['attempt']}{failed}"
        click.echo(f"  sent       {each['at']}  {sent}, query {each['query_id']}")
    ledger = sink["ledger"]
    if ledger:
        query = f"query {ledger['query_id']}" if ledger["query_id"] else "its query is not known"
        click.echo(f"  recorded   {ledger['delivered_at']}  {'as parked' if ledger['status'] == 'parked' else query}")
    sends = ", ".join(map(_send, sink["sends"])) or "not there"
    current = {True: ", its key's current row", False: ", not its key's current row", None: ""}[sink["current"]]
    click.echo(f"  in sink    {sends}{current}")


def _show_batch(change: dict[str, Any]) -> None:
    """From the batch's record to its delivery, or to where it is parked."""
    batch = change["batch"]
    if batch is None:
        click.echo("  batch      not cut yet")
        return
    span = (
        f"{batch['first_offset']}..{batch['last_offset']} ({counted(batch['rows'], 'row')}, send {batch['send_seq']})"
    )
    click.echo(f"  frozen     {batch['frozen_at']}  batch {span}")
    for failed in change["failed_syncs"]:
        why = printable(failed["error_message"] or "")
        tries = f"{counted(failed['attempts'], 'attempt')}, the last at {failed['last_failed_at']}"
        click.echo(f"  parked     {failed['first_failed_at']}  {failed['status']}, {tries}: {why}")
    if batch["delivered_at"]:
        nth = f"  attempt {batch['attempt']}" if batch["attempt"] and not change["failed_syncs"] else ""
        click.echo(f"  delivered  {batch['delivered_at']}{nth}")
    elif not change["failed_syncs"]:
        click.echo("  delivered  not yet")


def _send(text: str) -> str:
    """A send as its number; the first timeline goes without saying."""
    timeline, number = int(text) >> 48, int(text) & ((1 << 48) - 1)
    return f"send {number}" if timeline < 2 else f"send {number} of timeline {timeline}"

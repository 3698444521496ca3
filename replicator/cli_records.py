"""``replicator failed``, ``rejected``, ``gaps`` and ``actions``: what was kept aside, and what operators did."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from replicator.cli_answer import (
    answer,
    confirm,
    dry_run_option,
    json_option,
    local_operations,
    printable,
    require_file,
    service_or_file,
    settings_of,
    table,
    yes_option,
)
from replicator.client import local_actor
from replicator.config import Settings
from replicator.errors import UsageError

if TYPE_CHECKING:
    from replicator.operations import Operations, Selection

SHOWN_MAX = 1000
AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
UNAVAILABLE = 3
ANSWER_SECONDS = 60.0
Command = Callable[..., Any]
Options = dict[str, Any]


def _age(text: str | None) -> float | None:
    """Seconds from ``90``, ``90s``, ``15m``, ``2h`` or ``7d``."""
    if text is None:
        return None
    match = AGE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"--older-than {text!r} is no age", hint="write 90s, 15m, 2h or 7d")
    return float(match[1]) * UNITS[match[2]]


def _selecting(subject: str) -> Callable[[Command], Command]:
    """The ways to say which rows are meant."""

    def decorate(command: Command) -> Command:
        command = click.option("--all", is_flag=True, help="All that are open.")(command)
        command = click.option("--older-than", metavar="AGE", help="Only what is so old: 90s, 15m, 2h, 7d.")(command)
        command = click.option(f"--{subject}", "subject", metavar="NAME", help=f"Only those of this {subject}.")(
            command
        )
        return click.argument("ids", nargs=-1, type=click.IntRange(min=1))(command)

    return decorate


def _discarding(command: Command) -> Command:
    """What giving something up needs besides."""
    for option in (json_option, dry_run_option, yes_option):
        command = option(command)
    return click.option("--reason", required=True, help="Why; it stays on record.")(command)


def _listing(subject: str, states: list[str]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        command = json_option(command)
        command = click.option("--limit", type=click.IntRange(1, 10_000), default=SHOWN_MAX, show_default=True)(command)
        command = click.option(f"--{subject}", "subject", metavar="NAME", help=f"Only those of this {subject}.")(
            command
        )
        return click.option("--status", type=click.Choice(states), default="open", show_default=True)(command)

    return decorate


def _body(options: Options) -> Options:
    """Which rows are meant, as the interface takes it."""
    age = _age(options["older_than"])
    subject, everything = options["subject"], options["all"]
    return {"ids": list(options["ids"]), "subject": subject, "older_than_seconds": age, "all": everything}


def _selection(body: Options) -> Selection:
    from replicator.operations import Selection  # noqa: PLC0415 - loads DuckDB

    ids = tuple(dict.fromkeys(body["ids"]))
    return Selection(ids=ids, subject=body["subject"], older_than_seconds=body["older_than_seconds"], all=body["all"])


def _list(context: click.Context, what: str, subject_name: str, options: Options) -> list[Options]:
    from replicator.operations import Selection  # noqa: PLC0415

    subject, status, limit = options["subject"], options["status"], options["limit"]
    chosen = Selection(subject=subject, status=None if status == "all" else status, limit=limit)
    query = {subject_name: subject, "status": status, "limit": limit}
    return service_or_file(
        settings_of(context),
        remote=lambda client: client.get(f"/api/v1/{what}", **query),
        local=lambda ops: getattr(ops, what)(chosen),
    )


def _change(context: click.Context, what: str, verb: str, body: Options, more: Options) -> Options:
    """Ask for a change, of the service or of the file."""
    wait = more.get("wait_seconds", 0) + ANSWER_SECONDS
    works = verb == "retry" and not more["dry_run"]
    return service_or_file(
        settings_of(context),
        remote=lambda client: client.post(f"/api/v1/{what}/{verb}", body | more, timeout_seconds=wait),
        local=lambda ops: getattr(ops, f"{what}_{verb}")(_selection(body), actor=local_actor(), **more),
        opened=partial(_alone, logging=what == "rejected") if works else local_operations,
    )


def _alone(settings: Settings, *, logging: bool) -> AbstractContextManager[Operations]:
    """With delivery, and for rejected entries with what logs them, going on meanwhile."""
    from replicator.service_alone import alone  # noqa: PLC0415 - loads everything

    require_file(settings)
    return alone(settings, logging=logging)


def _show_one(context: click.Context, what: str, row_id: int, as_json: bool) -> None:
    found = service_or_file(
        settings_of(context),
        remote=lambda client: client.get(f"/api/v1/{what}/{row_id}"),
        local=lambda ops: getattr(ops, f"{what}_show")(row_id),
    )
    answer(found, as_json, _show_fields)


def _show_fields(found: Options) -> None:
    lists = {name: value for name, value in found.items() if isinstance(value, list)}
    for name, value in found.items():
        if name not in lists and value is not None:
            click.echo(f"{name:18} {printable(str(value))}")
    for name, rows in lists.items():
        if rows:
            click.echo(f"\n{name}")
            table(list(rows[0]), [list(row.values()) for row in rows])


# ── failed ──


@click.group("failed", short_help="Ranges that could not be delivered: list, show, retry, discard.")
def failed_group() -> None:
    """Ranges that ClickHouse did not take. They are parked; nothing of them is lost."""


@failed_group.command("list")
@_listing("table", ["open", "resolved", "discarded", "all"])
@click.pass_context
def failed_list(context: click.Context, **options: Any) -> None:
    """List them, oldest offsets first."""
    answer(_list(context, "failed", "table", options), options["as_json"], _show_failed)


def _show_failed(rows: list[Options]) -> None:
    names = ("id", "table", "offsets", "rows", "reason", "code", "attempts", "since", "status", "message")
    keys = ("row_count", "reason", "error_code", "attempts", "first_failed_at", "status")
    offsets = [f"{r['first_offset']}..{r['last_offset']}" for r in rows]
    said = [r["note"] or r["error_message"] for r in rows]
    cells = [[r["id"], r["table"], offsets[i], *(r[key] for key in keys), said[i]] for i, r in enumerate(rows)]
    table(names, cells, empty="nothing is parked")


@failed_group.command("show")
@click.argument("failed_id", metavar="ID", type=click.IntRange(min=1))
@json_option
@click.pass_context
def failed_show(context: click.Context, failed_id: int, as_json: bool) -> None:
    """Show one with the changes that were refused."""
    _show_one(context, "failed", failed_id, as_json)


@failed_group.command("retry")
@_selecting("table")
@click.option("--wait", type=click.FloatRange(0, 600), default=30, show_default=True, help="Seconds to wait for it.")
@dry_run_option
@json_option
@click.pass_context
def failed_retry(context: click.Context, **options: Any) -> None:
    """Send parked ranges again now, by ID, --table, --older-than or --all. Ends with 3 when some are still open.

    Without a running service it opens the file and delivers by itself.
    """
    more = {"wait_seconds": options["wait"], "dry_run": options["dry_run"]}
    done = _change(context, "failed", "retry", _body(options), more)
    answer(done, options["as_json"], lambda d: _show_failed(d["failed"]))
    context.exit(0 if options["dry_run"] or done["resolved"] == len(done["failed"]) else UNAVAILABLE)


@failed_group.command("discard")
@_selecting("table")
@_discarding
@click.pass_context
def failed_discard(context: click.Context, **options: Any) -> None:
    """Give parked ranges up for good: ClickHouse will never have them. They stay on record."""
    confirm("Give these ranges up for good?", options)
    done = _change(context, "failed", "discard", _body(options), _giving_up(options))
    answer(done, options["as_json"], lambda d: _show_failed(d["failed"]))


def _giving_up(options: Options) -> Options:
    return {"reason": options["reason"], "dry_run": options["dry_run"]}


# ── rejected ──


@click.group("rejected", short_help="Entries that could not be logged: list, show, retry, discard.")
def rejected_group() -> None:
    """Entries that could not be logged. They are kept with their raw bytes and the reason."""


@rejected_group.command("list")
@_listing("stream", ["open", "resolved", "discarded", "all"])
@click.pass_context
def rejected_list(context: click.Context, **options: Any) -> None:
    """List them, oldest first."""
    answer(_list(context, "rejected", "stream", options), options["as_json"], _show_rejected)


def _show_rejected(rows: list[Options]) -> None:
    names = ("id", "stream", "entry_id", "entry_row", "rejected_at", "status", "reason")
    table(names, [[row[name] for name in names] for row in rows], empty="nothing was rejected")


@rejected_group.command("show")
@click.argument("rejected_id", metavar="ID", type=click.IntRange(min=1))
@json_option
@click.pass_context
def rejected_show(context: click.Context, rejected_id: int, as_json: bool) -> None:
    """Show one with its fields and its raw bytes (base64)."""
    _show_one(context, "rejected", rejected_id, as_json)


@rejected_group.command("retry")
@_selecting("stream")
@click.option("--as-new", is_flag=True, help="Also where the key has a newer change: the entry then counts as newest.")
@dry_run_option
@json_option
@click.pass_context
def rejected_retry(context: click.Context, **options: Any) -> None:
    """Decode entries again with today's configuration and log those that fit. Ends with 3 when some are still open.

    Without a running service it opens the file and logs them by itself; Redis has to answer.
    """
    more = {"as_new": options["as_new"], "dry_run": options["dry_run"]}
    done = _change(context, "rejected", "retry", _body(options), more)
    answer(done, options["as_json"], lambda d: _show_retried(d["rejected"]))
    context.exit(0 if options["dry_run"] or done["logged"] == len(done["rejected"]) else UNAVAILABLE)


def _show_retried(rows: list[Options]) -> None:
    _show_rejected([{**row, "reason": row.get("kept") or row["reason"]} for row in rows])


@rejected_group.command("discard")
@_selecting("stream")
@_discarding
@click.pass_context
def rejected_discard(context: click.Context, **options: Any) -> None:
    """Close rejected entries: they will not be logged. Their bytes stay on record."""
    confirm("Close these entries without logging them?", options)
    done = _change(context, "rejected", "discard", _body(options), _giving_up(options))
    answer(done, options["as_json"], lambda d: _show_rejected(d["rejected"]))


# ── gaps, actions ──


@click.group("gaps", short_help="Entries that left Redis before they were read: list, ack.")
def gaps_group() -> None:
    """Entries that left Redis before they were read. They are lost to us; the producer may have them."""


@gaps_group.command("list")
@_listing("stream", ["open", "acknowledged", "all"])
@click.pass_context
def gaps_list(context: click.Context, **options: Any) -> None:
    """List them, oldest first."""
    answer(_list(context, "gaps", "stream", options), options["as_json"], _show_gaps)


def _show_gaps(rows: list[Options]) -> None:
    names = ("id", "stream", "after_entry_id", "before_entry_id", "entries_lost", "found_at", "status", "cause")
    table(names, [[row[name] for name in names] for row in rows], empty="there are no gaps")


@gaps_group.command("ack")
@_selecting("stream")
@click.option("--note", default="", help="What was done about it; it stays on record.")
@json_option
@click.pass_context
def gaps_ack(context: click.Context, **options: Any) -> None:
    """Acknowledge gaps, by ID, --stream or --all: they stay on record, and the status is no longer red for them."""
    done = _change(context, "gaps", "ack", _body(options), {"note": options["note"]})
    answer(done, options["as_json"], lambda d: _show_gaps(d["gaps"]))


@click.command("actions", short_help="Show what operators have asked for.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@click.pass_context
def actions_command(context: click.Context, limit: int, as_json: bool) -> None:
    """Show who asked for what, when, and what came of it, newest first."""
    rows = service_or_file(
        settings_of(context),
        remote=lambda client: client.get("/api/v1/actions", limit=limit),
        local=lambda ops: ops.actions(limit=limit),
    )
    answer(rows, as_json, _show_actions)


def _show_actions(rows: list[Options]) -> None:
    names = ("asked_at", "actor", "action", "subject", "effect")
    table(names, [[row[name] for name in names] for row in rows], empty="nothing yet")

"""How the status report looks in a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replicator.cli_answer import printable
from replicator.words import counted

UNKNOWN, NOT_FILLING = "unknown", "not filling"
YEARS_SECONDS = 3 * 365 * 86_400
COLOURS = {"ok": "green", "degraded": "yellow", "failed": "red"}
Report = dict[str, Any]


def whole(report: Report) -> RenderableType:
    """Verdict and reasons first, then the flow from Redis to ClickHouse, then each table."""
    parts: list[RenderableType] = [_verdict(report), *_reasons(report), Text(), _flow(report)]
    if report["tables"]:
        parts += [Text(), _tables(report["tables"])]
    return Group(*parts)


def _verdict(report: Report) -> Text:
    text = Text(report["state"].upper(), style=f"bold {COLOURS[report['state']]}")
    text.append(f"  pipeline {report['pipeline']}", style="default not bold")
    if report["running"]:
        text.append(f", running for {seconds(report['uptime_seconds'])}", style="default not bold")
    return text


def _reasons(report: Report) -> Iterable[Text]:
    return (Text(f"  • {printable(reason)}", overflow="fold") for reason in report["reasons"])


def _flow(report: Report) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    log, sink, rates, runway = report["log"], report["sink"], report["rates"], report["runway"]
    for stream in report["streams"]:
        read_to = stream["last_entry_id"] or "not read yet"
        name = printable(stream["stream"])
        grid.add_row(
            "stream", Text(f"{name}  at {read_to}, {several(stream['backlog_entries'], 'entry', 'entries')} behind")
        )
    grid.add_row(
        "log",
        Text(
            f"head {number(log['head_offset'])}, {several(log['changes'], 'change')}, {size(log['bytes'])}, "
            f"{rate(rates['changes_logged'])} in"
        ),
    )
    grid.add_row(
        "delivered",
        Text(
            f"checkpoint {number(sink['checkpoint_offset'])}, confirmed by ClickHouse "
            f"{number(sink['confirmed_offset'])}, {rate(rates['rows_delivered'])} out"
        ),
    )
    grid.add_row("lag", Text(f"{several(sink['lag_changes'], 'change')}, {seconds(sink['lag_seconds'])}"))
    grid.add_row("kept aside", Text(kept_aside(report)))
    grid.add_row("verify", Text(_verified(report["verify"])))
    grid.add_row("runway", Text(lasting(runway)))
    return grid


def lasting(runway: Report) -> str:
    """When the disk and Redis are full and delivery has caught up, or why there is no such moment."""
    full = {"never": NOT_FILLING, "unlimited": "without a limit"}
    disk, redis = (full.get(runway[what]) or seconds(runway[f"{what}_seconds"]) for what in ("disk", "redis"))
    falls_behind = runway["catch_up"] == "never"
    in_time = f"caught up in {seconds(runway['catch_up_seconds'])}"
    return f"disk {disk}, Redis {redis}, {'falling behind: more is logged than delivered' if falls_behind else in_time}"


def kept_aside(report: Report) -> str:
    """What is parked and since when, rejected and lost, in numbers."""
    failed, rejected, gaps = report["failed_syncs"], report["rejected_entries"], report["gaps"]
    age = f", the oldest {seconds(failed['oldest_age_seconds'])} old" if failed["open"] else ""
    return (
        f"{several(failed['open'], 'failed sync')} ({several(failed['rows'], 'row')}{age}), "
        f"{several(rejected['open'], 'rejected entry', 'rejected entries')}, {several(gaps['open'], 'gap')}"
    )


def _verified(verify: Report) -> str:
    """The last comparison of everything: when, what it found, and when one last found both sides equal."""
    if verify["last_at"] is None:
        return "never yet: `replicator verify` compares log and ClickHouse"
    age = f"{seconds(verify['age_seconds'])} ago"
    if not verify["mismatches"]:
        return f"log and ClickHouse agreed {age}"
    since = verify["success_age_seconds"]
    before = "never before" if since is None else f"last {seconds(since)} ago"
    return f"{counted(verify['mismatches'], 'difference')} found {age}; they agreed {before}"


def _tables(tables: list[Report]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("table", "checkpoint", "confirmed", "pending", "parked"):
        shown.add_column(name, justify="left" if name == "table" else "right")
    shown.add_column("delivery", overflow="fold")
    for t in tables:
        cells = [number(t[name]) for name in ("checkpoint_offset", "confirmed_offset", "pending", "parked")]
        shown.add_row(Text(printable(t["table"])), *cells, Text(printable(_delivery(t))))
    return shown


def _delivery(table: Report) -> str:
    if table["paused"]:
        return "paused"
    if table["stopped"]:
        return "stopped"
    waiting = "" if table["next_try_seconds"] is None else f", next try in {seconds(table['next_try_seconds'])}"
    if table["circuit"] == "open":
        return f"waits for ClickHouse{waiting}"
    if table["attempt"]:
        return f"failed {table['attempt']} times{waiting}"
    return {None: UNKNOWN, "closed": "goes on"}.get(table["circuit"], str(table["circuit"]))


def number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def several(value: int | None, one: str, many: str = "") -> str:
    return f"{UNKNOWN} {many or f'{one}s'}" if value is None else counted(value, one, many)


def rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}/s"


def size(value: int | None) -> str:
    if value is None:
        return UNKNOWN
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    if value < 172_800:
        return f"{value / 3600:.0f} h"
    return f"{value / 86_400:,.0f} days" if value < YEARS_SECONDS else "years"

"""``replicator check``: the resolved settings and their consumers, every connection tried, and what will hurt.

Shows no secret. Ends with 0 when everything answers and nothing forbids the work, 2 for the configuration, 3 when
something does not answer or refuses.
"""

from __future__ import annotations

from typing import Any

import click

from replicator.cli_answer import answer, json_option, printable, settings_of, table

UNAVAILABLE = 3


@click.command("check", short_help="Check the configuration and every connection.")
@click.option("--no-connect", is_flag=True, help="Only the configuration: connect to nothing.")
@json_option
@click.pass_context
def check_command(context: click.Context, no_connect: bool, as_json: bool) -> None:
    """Print the resolved settings (secrets hidden) with the part that consumes each, try Redis, ClickHouse and the
    DuckDB file, warn of what will hurt, and print the grants and the Redis ACL to give.
    """
    from replicator.catalog import refuse_undeclarable  # noqa: PLC0415 - loads the drivers
    from replicator.preflight import clickhouse_grants, inspect, redis_acl  # noqa: PLC0415

    settings = settings_of(context)
    refuse_undeclarable(settings.tables)
    found = [] if no_connect else inspect(settings)
    explained = settings.explain()
    done: dict[str, Any] = {
        "config_dir": str(settings.config_dir),
        "settings": [
            {
                "file": s.file,
                "section": s.section,
                "key": s.key,
                "value": s.value,
                "source": s.source,
                "consumer": s.consumer,
            }
            for s in explained
        ],
        "warnings": list(settings.warnings),
        "connections": [finding.as_json() for finding in found],
        "clickhouse_grants": clickhouse_grants(settings),
        "redis_acl": redis_acl(settings),
    }
    answer(done, as_json, _show)
    context.exit(0 if all(finding.ok for finding in found) else UNAVAILABLE)


def _show(done: dict[str, Any]) -> None:
    rows = [
        (s["file"], f"[{s['section']}]" if s["section"] else "", s["key"], s["value"], s["source"], s["consumer"])
        for s in done["settings"]
    ]
    table(("file", "section", "key", "value", "from", "used by"), rows)
    click.echo()
    for finding in done["connections"]:
        mark, colour = ("ok", "green") if finding["ok"] else ("FAILED", "red")
        click.secho(f"{finding['part']:12}{mark:8}", fg=colour, nl=False)
        click.echo(printable(finding["text"]))
        for warning in finding["warnings"]:
            click.secho(f"{'':12}{'warning':8}", fg="yellow", nl=False)
            click.echo(printable(warning))
        if finding["hint"]:
            click.echo(f"{'':20}→ {printable(finding['hint'])}")
    for warning in done["warnings"]:
        click.secho("settings    warning ", fg="yellow", nl=False)
        click.echo(printable(warning))
    click.echo("\nWhat the ClickHouse user needs:")
    for line in done["clickhouse_grants"]:
        click.echo(f"  {line}")
    click.echo("What the Redis user needs:")
    click.echo(f"  {done['redis_acl']}")

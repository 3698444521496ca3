"""What supervisors are told when part of the process hangs; a report that nobody renews is no report of health."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import evolve
from fastapi import FastAPI

from replicator import systemd
from replicator.running import RunningService
from replicator.server_app import Doors, Face, health_router
from replicator.server_tokens import Tokens
from replicator.status import LoopStatus, StatusReport
from replicator.status_live import REPORT_SECONDS_MAX, Watch
from replicator.status_reasons import HEARTBEAT_SECONDS_MAX, State

WELL = StatusReport(pipeline="main", running=True, database="d.duckdb")
HANGS = evolve(WELL, loops=[LoopStatus(loop="capture", running=True, heartbeat_seconds_ago=HEARTBEAT_SECONDS_MAX + 1)])


def watch(report: StatusReport | None, age_seconds: float = 0.0) -> Watch:
    nothing = cast(Any, None)
    return Watch(
        service=nothing,
        probe=nothing,
        stop=threading.Event(),
        latest=report,
        latest_at=time.monotonic() - age_seconds,
    )


def asked(path: str, watched: Watch) -> tuple[int, dict[str, Any]]:
    """What the health routes answer."""
    nothing = cast(Any, None)
    tokens = lambda: cast(Tokens, None)  # noqa: E731
    face = Face(
        host="127.0.0.1",
        tokens=tokens,
        version="1",
        instance_id="i",
        pipeline="main",
        operations=nothing,
        report=nothing,
        latest=lambda: watched.recent,
    )
    app = FastAPI()
    app.include_router(health_router(face, Doors(tokens)))
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "headers": [],
        "query_string": b"",
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    ("watched", "alive", "ready", "reasons"),
    [
        (partial(watch, None), 200, 503, []),
        (partial(watch, WELL), 200, 200, []),
        (partial(watch, HANGS), 503, 503, ["loop_silent"]),
        (partial(watch, WELL, REPORT_SECONDS_MAX + 1), 503, 503, ["report_old"]),
        (partial(watch, evolve(WELL, paused=["capture"])), 200, 200, ["paused"]),
        (partial(watch, evolve(WELL, loops=[LoopStatus(loop="x", running=False)])), 200, 503, ["loop_down"]),
    ],
    ids=["starting", "well", "a loop hangs", "the report is old", "degraded", "failed"],
)
def test_livez_asks_for_a_restart_and_readyz_for_help(
    watched: partial[Watch], alive: int, ready: int, reasons: list[str]
) -> None:
    made = watched()  # now: a report grows old while the suite runs
    assert asked("/livez", made)[0] == alive
    status, body = asked("/readyz", made)
    assert (status, body["reasons"]) == (ready, reasons)


def test_an_old_report_says_that_it_is_and_how_old() -> None:
    report = watch(WELL, 100).recent
    assert report is not None and report.state is State.FAILED
    assert report.reasons[0].text == "the status was last made 100 s ago: whatever makes it hangs"


def test_a_manager_that_does_not_read_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(systemd, "PATIENCE_SECONDS", 0.001)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "notify"))
        for _ in range(600):  # more than any queue of datagrams holds by default
            systemd.notify("WATCHDOG=1")
    systemd.notify("WATCHDOG=1")


@pytest.mark.parametrize(
    ("watched", "beats"), [(partial(watch, WELL), 1), (partial(watch, HANGS), 0), (partial(watch, WELL, 100), 0)]
)
def test_the_watchdog_hears_nothing_while_part_of_it_hangs(
    monkeypatch: pytest.MonkeyPatch, watched: partial[Watch], beats: int
) -> None:
    told: list[str] = []
    monkeypatch.setattr(systemd, "notify", told.append)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    running = RunningService.__new__(RunningService)
    running.watch, running._notified_at, running._state_line = watched(), 0.0, ""
    running._tell_watchdog()
    assert told == ["WATCHDOG=1"] * beats

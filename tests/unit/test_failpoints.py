"""Failpoints: free when off, exact when armed, and every name stands where it says."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import failpoints
from replicator.failpoints import NAMES, arm, failpoint

PACKAGE = Path(failpoints.__file__).parent


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm("")


def test_unarmed_nothing_happens_not_even_for_an_unknown_name() -> None:
    failpoint("append.before_commit")
    failpoint("there is no such place")


def test_the_nth_time_and_only_that() -> None:
    arm("send.after=raise@3")
    failpoint("send.after")
    failpoint("ledger.before")
    failpoint("send.after")
    with pytest.raises(RuntimeError, match=r"send\.after"):
        failpoint("send.after")
    failpoint("send.after")


@pytest.mark.parametrize(("action", "number"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_the_process_dies_or_stands_still(action: str, number: int) -> None:
    code = "from replicator.failpoints import failpoint; failpoint('send.after')"
    environment = {"REPLICATOR_FAILPOINTS": f"send.after={action}", "PYTHONPATH": str(PACKAGE.parent)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        if action == "stop":
            status = Path(f"/proc/{process.pid}/stat")
            while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "T":
                pass
            process.kill()
            number = signal.SIGKILL
    assert process.returncode == -number


@pytest.mark.parametrize("text", ["nowhere=kill", "send.after", "send.after=explode", "send.after=kill@x"])
def test_what_cannot_be_armed_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        arm(text)


def test_every_failpoint_has_a_name_and_every_name_a_place() -> None:
    placed = {
        name for path in PACKAGE.rglob("*.py") for name in re.findall(r'failpoint\("([\w.]+)"\)', path.read_text())
    }
    assert placed == set(NAMES)

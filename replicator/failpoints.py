"""Places named after durable steps where tests make the process die or fail.

Armed by the environment variable REPLICATOR_FAILPOINTS, ``name=action[@nth][,…]``; actions: ``kill`` (SIGKILL to
ourselves), ``raise`` (RuntimeError) and ``stop`` (SIGSTOP). ``@3`` means the third time it is reached. Unarmed, a
failpoint costs one truth test.
"""

from __future__ import annotations

import os
import signal
import threading

from attrs import define, field

NAMES = (
    "append.before_commit",
    "append.after_commit",
    "publish.after",
    "freeze.after",
    "send.after",
    "ledger.before",
    "ledger.after",
    "checkpoint.before",
    "checkpoint.after",
    "bisect.between_children",
    "park.after",
    "redrive.after_send",
    "fold.inside",
    "retention.inside",
    "migration.inside",
    "sink_migration.inside",
    "alter.inside",
    "replay.after_send",
    "rebuild.copied",
    "rebuild.inside",
)


@define
class _Armed:
    action: str
    nth: int
    reached: int = field(default=0)


_lock = threading.Lock()


def _parse(text: str) -> dict[str, _Armed]:
    armed = {}
    for part in filter(None, text.split(",")):
        name, _, rest = part.partition("=")
        action, _, nth = rest.partition("@")
        if name not in NAMES or action not in ("kill", "raise", "stop") or not (nth or "1").isdigit():
            raise ValueError(
                f"REPLICATOR_FAILPOINTS: {part!r} is not name=kill|raise|stop[@nth]; names: {', '.join(NAMES)}"
            )
        armed[name] = _Armed(action, int(nth or 1))
    return armed


_armed = _parse(os.environ.get("REPLICATOR_FAILPOINTS", ""))


def arm(text: str) -> None:
    """Arm as the environment variable does, for a process that was forked from one already running."""
    _armed.clear()
    _armed.update(_parse(text))


def failpoint(name: str) -> None:
    """Do what was armed for this place; nothing when nothing was."""
    if not _armed:
        return
    assert name in NAMES, name
    point = _armed.get(name)
    if point is None:
        return
    with _lock:
        point.reached += 1
        due = point.reached == point.nth
    if due and point.action == "raise":
        raise RuntimeError(f"failpoint {name}")
    if due:
        os.kill(os.getpid(), signal.SIGKILL if point.action == "kill" else signal.SIGSTOP)

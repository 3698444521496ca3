"""An engine's life is tied to its parent's by a pipe: when the pipe closes, the engine stops.

Guarantees that a started engine never outlives the process that started it, even when that process is killed with -9,
on Linux and macOS alike: the kernel closes the pipe whatever ends the parent. Imported, it starts children; run as a
script (``python -I -S lifeline.py command …``) it is the small process between the parent and an engine that knows
nothing of pipes. It must import nothing beyond the standard library, and never writes to the pipe's reading side.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

STOP_SECONDS = 10.0
"""How long an engine may take to stop in order before it is killed."""

TAIL_CHARACTERS = 2000


def on_parent_death(action: Callable[[], None]) -> None:
    """Call ``action`` in a thread of its own once the parent's end of our standard input is closed."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        action()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def spawn(
    command: Sequence[str], *, output: Path, reads_output: bool = False, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start ``command`` with the lifeline as its standard input and what it prints appended to the file ``output``.

    In a session of its own, so that Ctrl-C reaches the parent only and the parent decides when the engine stops; and
    in UTC, so that an engine answers the same on every machine. With ``reads_output`` its standard output is a pipe.
    """
    with output.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if reads_output else log,
            stderr=log,
            pass_fds=pass_fds,
            start_new_session=True,
            env={**os.environ, "TZ": "UTC"},
        )


def supervised(command: Sequence[str], *, output: Path, lock: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start ``command`` under a supervising process; return that process and the pid of the engine itself.

    Both inherit the descriptor ``lock``.
    """
    script = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(output), str(lock), *command]
    supervisor = spawn(script, output=output, reads_output=True, pass_fds=(lock,))
    assert supervisor.stdout is not None
    line = supervisor.stdout.readline()
    if not line:
        release(supervisor)
        return supervisor, 0
    return supervisor, int(line)


def release(child: subprocess.Popen[bytes], *, seconds: float = STOP_SECONDS + 5) -> None:
    """Let go of the lifeline and wait until the child has stopped; kill it when it takes too long."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def tail(path: Path, *, start: int = 0) -> str:
    """The last lines an engine wrote to its log since it was ``start`` bytes long, for an error message."""
    try:
        return path.read_bytes()[start:].decode(errors="replace")[-TAIL_CHARACTERS:].strip()
    except OSError:
        return ""


def size(path: Path) -> int:
    """How long a log is now, 0 when there is none."""
    return path.stat().st_size if path.exists() else 0


def _die_with_parent() -> None:
    """Linux only, in the engine before exec: a supervisor killed with -9 takes the engine along."""
    import ctypes  # noqa: PLC0415 - only where the supervisor runs on Linux

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _supervise(output: str, lock: int, command: Sequence[str]) -> int:
    """Run ``command`` until it ends or the parent dies; print its pid first."""
    with Path(output).open("ab") as log:
        engine = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - no thread runs yet
        )

    def stop() -> None:
        engine.terminate()
        try:
            engine.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            engine.kill()

    signal.signal(signal.SIGTERM, lambda *_: engine.terminate())
    print(engine.pid, flush=True)  # noqa: T201 - the parent reads this line
    on_parent_death(stop)
    return engine.wait()


if __name__ == "__main__":
    sys.exit(_supervise(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))

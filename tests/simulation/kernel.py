"""Many threads in one: each is a greenlet that runs until it waits, who goes on is drawn from a seed, time is virtual.

Guarantees: the same seed gives the same run to the last step; time passes only here. A process is killed by raising
`Crash` in each of its threads, which from then on can reach nothing outside themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from attrs import define, field
from greenlet import greenlet

TURN_SECONDS = 0.001
"""What one turn takes of virtual time."""
EPOCH = 1_760_000_000.0
"""The wall clock when a run begins."""


class Crash(BaseException):
    """The process is gone: nothing it still does reaches anybody."""


@define(eq=False)
class Process:
    """One process: its threads die together."""

    name: str
    dead: bool = False


@define(eq=False)
class Task:
    """One thread of one process. ``process`` is None for what belongs to a server."""

    name: str
    run: Callable[[], None]
    process: Process | None
    ready: Callable[[], bool] | None = None
    wake_at: float | None = None
    done: bool = False
    frame: greenlet = field(init=False)

    def runnable(self, clock: float) -> bool:
        waiting = self.ready is not None or self.wake_at is not None
        due = self.wake_at is not None and clock >= self.wake_at
        return not waiting or due or (self.ready is not None and self.ready())


@define(eq=False)
class Kernel:
    """The scheduler. ``at`` is told of each place that a thread of a process passes, and may raise there."""

    rng: random.Random
    switch_chance: float = 0.3
    clock: float = 1_000.0
    """Seconds since boot."""
    wall_offset: float = EPOCH - 1_000.0
    turns: int = 0
    tasks: list[Task] = field(factory=list)
    trace: list[str] = field(factory=list)
    failures: list[BaseException] = field(factory=list)
    """What ended a thread and was nobody's to catch: a fault of ours."""
    at: Callable[[str, Process], None] = lambda place, process: None
    current: Task | None = None
    _main: greenlet = field(factory=greenlet.getcurrent)

    def note(self, text: str) -> None:
        who = self.current.name if self.current else "world"
        self.trace.append(f"{self.turns:6d} {self.clock - 1_000:9.3f} {who}: {text}")

    @property
    def wall(self) -> float:
        return self.clock + self.wall_offset

    # ── threads ──

    def spawn(self, name: str, run: Callable[[], None], process: Process | None) -> Task:
        task = Task(name=name, run=run, process=process)
        task.frame = greenlet(lambda: self._run(task), self._main)
        self.tasks.append(task)
        return task

    def _run(self, task: Task) -> None:
        try:
            task.run()
        except Crash:
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            task.done = True

    def kill(self, process: Process) -> None:
        """End a process. Called from outside its threads."""
        process.dead = True
        for task in [task for task in self.tasks if task.process is process]:
            while not task.done:
                if not task.frame:  # never ran
                    task.done = True
                    break
                self._resume(task, Crash())
        self._bury()

    def _resume(self, task: Task, error: BaseException | None = None) -> None:
        task.ready = task.wake_at = None
        before, self.current = self.current, task
        try:
            task.frame.throw(error) if error is not None else task.frame.switch()
        finally:
            self.current = before

    def _bury(self) -> None:
        self.tasks = [task for task in self.tasks if not task.done]

    def turn(self) -> bool:
        """Let one thread go on, or time pass until one can. False when nobody ever will."""
        self.turns += 1
        runnable = [task for task in self.tasks if task.runnable(self.clock)]
        if not runnable:
            times = [task.wake_at for task in self.tasks if task.wake_at is not None]
            if not times:
                return False
            self.clock = max(self.clock, min(times))
            return True
        self.clock += TURN_SECONDS
        task = runnable[0] if len(runnable) == 1 else self.rng.choice(runnable)
        self._resume(task)
        if task.done:
            self._bury()
        if task.process is not None and task.process.dead:
            self.kill(task.process)
        return True

    # ── what a thread calls ──

    def step(self, place: str) -> None:
        """A place where the process may die, and where others may run before this thread goes on."""
        task = self.current
        if task is None:
            return
        if task.process is not None:
            self._alive(task)
            self.at(place, task.process)
        if self.rng.random() < self.switch_chance:
            self._main.switch()
            self._alive(task)

    def wait(self, ready: Callable[[], bool] | None, seconds: float | None) -> bool:
        """Until ``ready``, or for so long. Returns whether it is."""
        task = self.current
        assert task is not None, "only threads wait"
        self._alive(task)
        if ready is not None and ready():
            return True
        task.ready = ready
        task.wake_at = None if seconds is None else self.clock + max(0.0, seconds)
        self._main.switch()
        self._alive(task)
        return ready is not None and ready()

    def _alive(self, task: Task) -> None:
        if task.process is not None and task.process.dead:
            raise Crash

    def die(self, process: Process) -> None:
        """The thread that runs takes its process with it."""
        process.dead = True
        raise Crash


def describe(value: Any) -> str:
    """A value for the trace: short, and the same in every run."""
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else f"{text[:157]}…"

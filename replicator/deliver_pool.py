"""The threads that deliver's work is done in.

Guarantees: an insert that hangs keeps neither the loop nor the process from ending. Knows nothing of what it runs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from attrs import define, field

T = TypeVar("T")
Tasks = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


@define
class WorkerPool:
    """Daemon threads, unlike those of ThreadPoolExecutor, which Python waits for at its end."""

    size: int
    _tasks: Tasks = field(factory=queue.SimpleQueue)

    def start(self, finished: Callable[[], None]) -> None:
        """Start the threads. ``finished`` is called after each task, in the thread that ran it."""
        self._tasks = queue.SimpleQueue()
        for number in range(self.size):
            arguments = (self._tasks, finished)
            threading.Thread(target=_work, args=arguments, name=f"deliver-{number}", daemon=True).start()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._tasks.put((future, task))
        return future

    def dismiss(self) -> None:
        """Each thread ends after the task it has; nobody waits for that."""
        for _ in range(self.size):
            self._tasks.put(None)


def _work(tasks: Tasks, finished: Callable[[], None]) -> None:
    while (item := tasks.get()) is not None:
        future, task = item
        try:
            future.set_result(task())
        except BaseException as error:  # belongs to whoever asks for the result
            future.set_exception(error)
        finished()

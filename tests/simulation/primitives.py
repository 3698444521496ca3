"""What the product takes from `threading`, `queue` and `time`, on a `Kernel`: put in the place of the modules' names."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import Any

from attrs import define, field
from simulation.kernel import Kernel, Task


@define(eq=False)
class Event:
    kernel: Kernel
    _set: bool = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        return self.kernel.wait(self.is_set, timeout)


@define(eq=False)
class Lock:
    """Also an RLock: whose it is may take it again."""

    kernel: Kernel
    owner: Task | None = None
    depth: int = 0

    def _free(self) -> bool:
        return self.owner is None or self.owner is self.kernel.current or self.owner.done

    def __enter__(self) -> Lock:
        me = self.kernel.current
        if me is not None and not self._takes(me):
            while not self._takes(me):
                self.kernel.wait(lambda: self.owner is None or self.owner.done, None)
        return self

    def _takes(self, me: Task) -> bool:
        if self.owner is not None and self.owner is not me and not self.owner.done:
            return False
        self.depth = self.depth + 1 if self.owner is me else 1
        self.owner = me
        return True

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.depth <= 0:
            self.owner, self.depth = None, 0

    def acquire(self, timeout: float = -1) -> bool:
        self.__enter__()
        return True

    def release(self) -> None:
        self.__exit__()


@define(eq=False)
class Condition:
    """Nobody runs between two of its waits, so that it excludes nobody."""

    kernel: Kernel
    _told: int = 0

    def __enter__(self) -> Condition:
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait(self, timeout: float | None = None) -> bool:
        before = self._told
        return self.kernel.wait(lambda: self._told != before, timeout)

    def notify_all(self) -> None:
        self._told += 1


@define(eq=False)
class Thread:
    kernel: Kernel
    target: Callable[..., None]
    args: tuple[Any, ...] = ()
    name: str = "thread"
    daemon: bool = True
    _task: Task | None = None

    def start(self) -> None:
        assert self.kernel.current is not None
        run, process = (lambda: self.target(*self.args)), self.kernel.current.process
        self._task = self.kernel.spawn(self.name, run, process)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done

    def join(self, timeout: float | None = None) -> None:
        self.kernel.wait(lambda: not self.is_alive(), timeout)


@define(eq=False)
class Queue:
    kernel: Kernel
    maxsize: int = 0
    _items: deque[Any] = field(factory=deque)

    def empty(self) -> bool:
        return not self._items

    def _room(self) -> bool:
        return not self.maxsize or len(self._items) < self.maxsize

    def put(self, item: Any, timeout: float | None = None) -> None:
        if not self._room() and not self.kernel.wait(self._room, timeout):
            raise queue.Full
        self._items.append(item)

    def get(self, timeout: float | None = None) -> Any:
        if not self._items and not self.kernel.wait(lambda: bool(self._items), timeout):
            raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> Any:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()


@define(eq=False)
class Threading:
    """The module ``threading``."""

    kernel: Kernel

    def Event(self) -> Event:  # noqa: N802
        return Event(self.kernel)

    def Lock(self) -> Lock:  # noqa: N802
        return Lock(self.kernel)

    RLock = Lock

    def Condition(self) -> Condition:  # noqa: N802
        return Condition(self.kernel)

    def Thread(self, **about: Any) -> Thread:  # noqa: N802
        return Thread(self.kernel, **about)


@define(eq=False)
class Queues:
    """The module ``queue``."""

    kernel: Kernel
    Full = queue.Full
    Empty = queue.Empty

    def Queue(self, maxsize: int = 0) -> Queue:  # noqa: N802
        return Queue(self.kernel, maxsize)

    def SimpleQueue(self) -> Queue:  # noqa: N802
        return Queue(self.kernel)


@define(eq=False)
class Times:
    """The module ``time``. The monotonic clocks begin at the machine's boot."""

    kernel: Kernel
    CLOCK_MONOTONIC = time.CLOCK_MONOTONIC
    CLOCK_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def monotonic(self) -> float:
        return self.kernel.clock

    def clock_gettime(self, _: int) -> float:
        return self.kernel.clock

    def time(self) -> float:
        return self.kernel.wall

    def time_ns(self) -> int:
        return int(self.kernel.wall * 1e9)


@define(eq=False)
class Datetimes:
    """The class ``datetime``, as far as it tells the time."""

    kernel: Kernel

    def now(self, zone: timezone) -> datetime:
        return datetime.fromtimestamp(0, zone) + timedelta(seconds=self.kernel.wall)


@define(eq=False)
class Waiting:
    """The function ``concurrent.futures.wait``, for the first of the futures."""

    kernel: Kernel

    def __call__(self, futures: Sequence[Future[Any]], timeout: float | None = None) -> None:
        self.kernel.wait(lambda: all(future.done() for future in futures), timeout)

"""One owner per pipeline: a binding that never expires, and a lease that does.

Guarantees: a pipeline belongs to one instance, the one whose id stands under ``replicator:<pipeline>:owner``, and
another never takes it by waiting; of two processes of one instance (a copied file) only the holder of the lease logs;
who slept past the lease logs and sends nothing before Redis has confirmed it again. Never deletes another's keys.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog
from attrs import define, field

from replicator.clock import boot_seconds
from replicator.errors import OwnershipLost, SinkUnavailable, SourceUnavailable

LEASE_SECONDS = 10.0
POLL_SECONDS = 0.1

log = structlog.get_logger(__name__)


class LeaseStore(Protocol):
    """Where the two keys stand. Every call raises SourceUnavailable when it is silent."""

    def swap(self, key: str, expected: bytes | None, new: bytes | None, seconds: float | None = None) -> bytes | None:
        """Set ``key`` to ``new`` (None: delete it) where it holds ``expected``; returns what it held. One step."""

    def seconds_left(self, key: str) -> float:
        """How long a key has to live; 0 when it is not there."""


def seat_of(path: Path) -> str:
    """This machine since its last boot, and this file: who locks the same file here has outlived its former owner."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text().strip() if boot.exists() else f"{platform.node()}/{uuid.getnode():x}"
    file = path.stat()
    return f"{machine}:{file.st_dev}:{file.st_ino}"


@define
class Ownership:
    """This process's claim. ``acquire`` and ``run`` may be called from any thread, as may the two checks."""

    store: LeaseStore
    pipeline: str
    instance_id: str
    seat: str
    file_empty: bool = False
    lease_seconds: float = LEASE_SECONDS
    clock: Callable[[], float] = boot_seconds
    nonce: str = field(factory=lambda: uuid.uuid4().hex)
    lost: OwnershipLost | None = field(default=None, init=False)
    _claim: bytes = field(init=False)
    _valid_until: float = field(default=0.0, init=False)
    _attempted_at: float = field(default=0.0, init=False)
    _silent: bool = field(default=False, init=False)
    """Whether Redis did not answer the last attempt."""
    _slept: bool = field(default=False, init=False)
    """Whether more time has passed unnoticed than the lease lasts; until Redis has confirmed it again."""
    _lock: threading.RLock = field(factory=threading.RLock, init=False)
    _wake: threading.Event = field(factory=threading.Event, init=False)

    def __attrs_post_init__(self) -> None:
        about = {"host": platform.node(), "pid": os.getpid(), "seat": self.seat}
        self._claim = json.dumps({"nonce": self.nonce, **about}).encode()

    @property
    def owner_key(self) -> str:
        return f"replicator:{self.pipeline}:owner"

    @property
    def lease_key(self) -> str:
        return f"replicator:{self.pipeline}:lease"

    @property
    def held(self) -> bool:
        """Whether the lease is ours at this moment."""
        return self.lost is None and self.clock() < self._valid_until

    def acquire(self, stop: threading.Event) -> None:
        """Claim the pipeline and the lease, waiting for a dead owner's to expire.

        Raises OwnershipLost, naming the owner, when another instance is bound or another process is alive.
        """
        deadline = self.clock() + self.lease_seconds + 2
        left = None
        while not stop.is_set():
            holder = self._attempt()
            if holder is None:
                return
            before, left = left, self.store.seconds_left(self.lease_key)
            renewed = before is not None and left > before
            if renewed or self.clock() > deadline:
                raise self._give_up(
                    f"pipeline {self.pipeline!r} is being served by {_named(holder)}",
                    "stop that process; two on copies of one file would tear the log apart",
                )
            stop.wait(POLL_SECONDS)

    def take_over(self, stop: threading.Event) -> str | None:
        """Bind the pipeline to this instance, whoever it belonged to. Returns who that was, None for nobody else.

        Waits for a dead owner's lease to expire; raises OwnershipLost while a process serves it.
        """
        mine = self.instance_id.encode()
        bound = self.store.swap(self.owner_key, None, mine)
        if bound in (None, mine):
            return None
        deadline = self.clock() + self.lease_seconds + 2
        while (holder := self.store.swap(self.lease_key, b"", None)) and self.clock() < deadline:
            stop.wait(POLL_SECONDS)  # what is never there was expected, so the lease was only looked at
        if holder:
            raise self._give_up(
                f"pipeline {self.pipeline!r} is being served by {_named(holder)}",
                "its file is not lost: stop that process first, or leave it alone",
            )
        if self.store.swap(self.owner_key, bound, mine) != bound:
            raise self._give_up(f"pipeline {self.pipeline!r} has got another owner just now", "look who that is")
        return bound.decode(errors="replace")

    def check(self) -> None:
        """Before every commit of capture. Raises OwnershipLost, or SourceUnavailable when the lease has run out."""
        if self.lost is not None:
            raise self.lost
        if self.clock() >= self._valid_until:
            self._wake.set()
            raise SourceUnavailable(f"the lease on pipeline {self.pipeline!r} has run out; it is asked for again")

    def check_sending(self) -> None:
        """Before every send. Without Redis deliver goes on; who slept must ask first whether the lease is still its own.

        Raises OwnershipLost, or SinkUnavailable while that cannot be known.
        """
        if self.lost is not None:
            raise self.lost
        if self.clock() < self._valid_until:
            return
        self._notice_sleep()
        if self._silent and not self._slept:
            return
        self._wake.set()
        try:
            holder = self._attempt()
        except SourceUnavailable as error:
            raise SinkUnavailable(f"Redis does not say who owns pipeline {self.pipeline!r}: {error}") from error
        if holder is not None:
            raise SinkUnavailable(f"pipeline {self.pipeline!r} is held by {_named(holder)}: nothing is sent meanwhile")

    def run(self, stop: threading.Event) -> None:
        """Renew until stopped. Raises OwnershipLost as soon as it is known; Redis may be silent as long as it likes."""
        while not stop.is_set():
            if self.lost is not None:
                raise self.lost
            try:
                if self._attempt() is not None:
                    self.acquire(stop)
            except SourceUnavailable as error:
                log.warning("lease_not_renewed", error=str(error))
            self._wake.wait(self.lease_seconds / 5)
            self._wake.clear()

    def release(self) -> None:
        """At an orderly end: the next process need not wait. The binding stays."""
        if self.held:
            self._valid_until = 0.0
            self.store.swap(self.lease_key, self._claim, None)

    def wake(self) -> None:
        """End a wait in `run` at once."""
        self._wake.set()

    def _attempt(self) -> bytes | None:
        """One try for both keys. Returns who holds the lease when it is another process, None when it is ours."""
        with self._lock:
            self._notice_sleep()
            asked_at, self._silent = self.clock(), True
            try:
                self._bind()
                holder = self._take_lease()
                self._silent = False
            finally:
                self._attempted_at = self.clock()
            self._slept = self._slept and holder is not None
            self._valid_until = asked_at + self.lease_seconds * 0.9 if holder is None else 0.0
            return holder

    def _notice_sleep(self) -> None:
        unseen = self.clock() - self._attempted_at
        self._slept = self._slept or (self._attempted_at > 0 and unseen > self.lease_seconds * 0.9)

    def _bind(self) -> None:
        mine = self.instance_id.encode()
        bound = self.store.swap(self.owner_key, None, mine)
        if bound in (None, mine):
            return
        holder = self.store.swap(self.lease_key, b"", None)  # expects what is never there: it only looks
        now = f"now {_named(holder)}" if holder else "not running now"
        message = f"pipeline {self.pipeline!r} belongs to instance {bound.decode(errors='replace')} ({now})"
        if self.file_empty:
            hint = "this DuckDB file is empty: name that instance's file in [database] path, or rebuild it with `replicator restore`"
        else:
            hint = f"use that instance's file, or give this one a [pipeline] name of its own; if that one is gone for good, delete the key {self.owner_key}"
        raise self._give_up(message, hint)

    def _take_lease(self) -> bytes | None:
        held = self.store.swap(self.lease_key, None, self._claim, self.lease_seconds)
        if held is None:
            return None
        if held == self._claim or _seat(held) == self.seat:
            found = self.store.swap(self.lease_key, held, self._claim, self.lease_seconds)
            return None if found == held else found
        return held

    def _give_up(self, message: str, hint: str) -> OwnershipLost:
        self.lost = self.lost or OwnershipLost(message, hint=hint)
        self._wake.set()
        return self.lost


def _seat(claim: bytes) -> str:
    return str(_fields(claim).get("seat", ""))


def _named(claim: bytes) -> str:
    fields = _fields(claim)
    return f"process {fields.get('pid', '?')} on {fields.get('host', '?')}"


def _fields(claim: bytes) -> dict[str, object]:
    try:
        fields = json.loads(claim)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}

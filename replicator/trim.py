"""Trims Redis streams below what is safe elsewhere: below what the log has, or below what the sink has too.

Guarantees: only entries whose changes are durable are trimmed, and the last of them stays, so that Redis can still be
recognised; never past what another consumer group has yet to read or to acknowledge; a stream whose history is not the
one that was read is left alone, in the same step that would trim it. Never reads an entry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, Protocol

import structlog
from attrs import define, field

from replicator.changelog import ChangeLog
from replicator.database import Session, statement
from replicator.errors import SourceUnavailable
from replicator.model import NO_ENTRY, EntryId, StreamPosition, entry_order
from replicator.source_trim import Trimmed

TURN_SECONDS, REST_FACTOR = 1.0, 20
ENTRIES_PER_STEP = 10_000
"""Redis serves nobody else during one step."""

log = structlog.get_logger(__name__)


class Trim(StrEnum):
    """Below what a stream may be trimmed."""

    NEVER = "never"
    LOGGED = "logged"
    CONFIRMED = "confirmed"


class TrimmedSource(Protocol):
    """The near end, as trimming needs it."""

    def trim(self, stream: str, before: EntryId, *, entries_max: int) -> Trimmed:
        """Remove entries older than ``before``, in one step with the question whether they may go."""


@define
class Trimmer:
    """A loop of its own. ``streams`` are those that are read; ``may_trim`` raises where the pipeline is not ours."""

    mode: Trim
    source: TrimmedSource
    changelog: ChangeLog
    streams: Callable[[], tuple[str, ...]]
    stop: threading.Event
    failed_table: str = '"failed_syncs"'
    may_trim: Callable[[], None] = lambda: None
    entries_trimmed: int = 0
    held_by: dict[str, str] = field(factory=dict)
    """By stream the group that has yet to read or acknowledge what could go otherwise."""
    _bare: dict[str, tuple[int, int]] = field(factory=dict)
    """By lane a checkpoint, and the offset up to which the log has nothing of the lane behind that checkpoint."""
    _seen: int = 0
    """The head at the last look: a lane that is not in ``_bare`` has nothing up to there."""

    def run(self) -> None:
        """Until stopped. While Redis is silent there is nothing to do; capture says so. A dear turn comes less often."""
        cost_seconds = 0.0
        while not self.stop.wait(max(TURN_SECONDS, REST_FACTOR * cost_seconds)):
            began = time.monotonic()
            with suppress(SourceUnavailable):
                self.turn()
            cost_seconds = time.monotonic() - began

    def turn(self) -> None:
        """Trim every stream as far as it may be. Raises SourceUnavailable or OwnershipLost."""
        if self.mode is Trim.NEVER:
            return
        for stream, before in self.limits().items():
            self._trim(stream, before)

    def _trim(self, stream: str, before: EntryId) -> None:
        entries, step = 0, ENTRIES_PER_STEP
        while step and not self.stop.is_set():
            self.may_trim()
            done = self.source.trim(stream, before, entries_max=ENTRIES_PER_STEP)
            step = done.entries
            entries += step
        if not self.stop.is_set():
            self._hold(stream, done.held_by)
        if entries:
            self.entries_trimmed += entries
            log.info("stream_trimmed", stream=stream, entries=entries, before=before)

    def _hold(self, stream: str, held_by: str | None) -> None:
        held = {name: group for name, group in self.held_by.items() if name != stream}
        self.held_by = held | ({} if held_by is None else {stream: held_by})

    def limits(self) -> Mapping[str, EntryId]:
        """The entry of each stream before which nothing is needed any more."""
        session = self.changelog.database.session()
        try:
            positions = self.changelog.positions(session)  # first: what is logged after them is not trimmed now
            unconfirmed = self._unconfirmed(session) if self.mode is Trim.CONFIRMED else {}
        finally:
            session.close()
        read = {s: p for s in self.streams() if (p := positions.get(s)) is not None and p.entries_read}
        limits = {stream: _limit(position, unconfirmed.get(stream)) for stream, position in read.items()}
        return {stream: before for stream, before in limits.items() if before != NO_ENTRY}

    def _unconfirmed(self, session: Session) -> dict[str, tuple[int, EntryId]]:
        """The first change of each stream that the sink does not have: its epoch and entry."""
        head = self.changelog.head  # before the snapshot, which holds at least that much
        with session.transaction():
            parked = session.row(statement("trim/parked_between", self.failed_table))
            rows = self._behind_the_lanes(session, head)
            if parked is not None and parked[0] is not None:
                bounds = {"first": parked[0], "last": parked[1]}
                rows += session.rows(statement("trim/parked", self.failed_table), bounds)
        first: dict[str, tuple[int, int, EntryId]] = {}
        for stream, *found in rows:
            first[stream] = min(first.get(stream, tuple(found)), tuple(found))
        return {stream: (epoch, EntryId(entry_id)) for stream, (_, epoch, entry_id) in first.items()}

    def _behind_the_lanes(self, session: Session, head: int) -> list[tuple[Any, ...]]:
        """The first change of each stream behind each lane's checkpoint, looking at no more than can have changed."""
        if head < self._seen:
            self._bare, self._seen = {}, 0
        stands = dict(session.rows(statement("trim/stands")))
        starts = {lane: self._start(lane, stands.get(lane, 0)) for lane in {*stands, *self._bare}}
        behind = min(self._seen, *starts.values()) if starts else 0
        lists = {"lanes": list(starts), "starts": list(starts.values()), "behind": behind}
        found = session.rows(statement("trim/unconfirmed"), lists)
        first: dict[str, int] = {}
        for lane, _, offset, *_ in found:
            first[lane] = min(first.get(lane, offset), offset)
        for lane in {*starts, *first}:
            self._bare[lane] = (stands.get(lane, 0), first[lane] - 1 if lane in first else head)
        self._seen = head
        return [row[1:] for row in found]

    def _start(self, lane: str, checkpoint: int) -> int:
        known, bare_to = self._bare.get(lane, (0, 0))
        return max(checkpoint, bare_to) if known <= checkpoint else checkpoint


def _limit(position: StreamPosition, unconfirmed: tuple[int, EntryId] | None) -> EntryId:
    if unconfirmed is None:
        return position.behind
    epoch, entry_id = unconfirmed
    return min(position.behind, entry_id, key=entry_order) if epoch == position.stream_epoch else NO_ENTRY

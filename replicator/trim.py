"""Trims Redis streams below what is safe elsewhere: below what the log has, or below what the sink has too.

Guarantees: only entries whose changes are durable are trimmed, and the last of them stays, so that Redis can still be
recognised; never past what another consumer group has yet to read or to acknowledge; a stream whose history is not the
one that was read is left alone, in the same step that would trim it. Never reads an entry.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Protocol

import structlog
from attrs import define, field

from replicator.changelog import ChangeLog
from replicator.database import Session, statement
from replicator.errors import SourceUnavailable
from replicator.model import NO_ENTRY, EntryId, StreamPosition, entry_order
from replicator.source_trim import Trimmed

TURN_SECONDS = 1.0
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

    def run(self) -> None:
        """Until stopped. While Redis is silent there is nothing to do; capture says so."""
        while not self.stop.wait(TURN_SECONDS):
            with suppress(SourceUnavailable):
                self.turn()

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
        sql = statement("trim/unconfirmed", self.failed_table)
        return {stream: (epoch, EntryId(entry_id)) for stream, epoch, entry_id in session.rows(sql)}


def _limit(position: StreamPosition, unconfirmed: tuple[int, EntryId] | None) -> EntryId:
    if unconfirmed is None:
        return position.behind
    epoch, entry_id = unconfirmed
    return min(position.behind, entry_id, key=entry_order) if epoch == position.stream_epoch else NO_ENTRY

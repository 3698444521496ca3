"""Reading with an eye on the history: is this still the stream that was read, and is everything there?

Guarantees: a stream is read only after a checked look on the same connection; a lost or changed history becomes a
turn, a chunk without changes whose gap and position commit together; what is read again and logged already is left
out. `witness` decides what a look means. Never writes to the log or to Redis.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog
from attrs import define, evolve, field, frozen

from replicator.admit import Admitted, with_rejections, without
from replicator.chunk import Chunk
from replicator.database import Session
from replicator.decode import Decoded, StreamRead
from replicator.errors import SourceTurned
from replicator.model import NO_ENTRY, EntryId, GapCause, StreamPosition, entry_order
from replicator.reread import Logged, oldest_logged, rows_of, through
from replicator.witness import Checked, Sighting, Verdict, anew, is_untouched, judge

CHECK_SECONDS = 1.0
SUPERSEDED = "superseded: the log had gone back, and the sink held a newer change of this key"

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class Look:
    """Turns come first, then the reads; both begin where the positions given or the turns stand."""

    reads: Sequence[StreamRead]
    behind: bool
    turns: Sequence[Chunk] = ()


class WatchedSource(Protocol):
    """The reading side of the near end."""

    published: Mapping[str, tuple[int, EntryId]]

    def read(
        self, positions: Mapping[str, StreamPosition], *, block_seconds: float
    ) -> tuple[list[StreamRead], bool]: ...
    def check(self, positions: Mapping[str, StreamPosition]) -> Checked: ...
    def promoted(self) -> bool: ...


@define
class StreamWatch:
    """Belongs to the reading thread of one run; ``admit`` decodes and admits a read as capture does."""

    source: WatchedSource
    session: Session
    admit: Callable[[StreamRead], Admitted]
    _checked_at: dict[str, float] = field(factory=dict)
    _exact_at: dict[str, EntryId] = field(factory=dict)
    _logged: dict[str, Logged] = field(factory=dict)

    def read(self, positions: Mapping[str, StreamPosition], *, block_seconds: float) -> Look:
        """Entries behind the positions: blocking as a rule, in a checked look when that is due.

        What a blocking read gives of a stream that has come into being is left there: our group must stand on it first.
        """
        now = time.monotonic()
        if all(now - self._checked_at.get(stream, -CHECK_SECONDS) < CHECK_SECONDS for stream in positions):
            reads, behind = self.source.read(positions, block_seconds=block_seconds)
            if not any(is_untouched(witnessed(positions[read.stream], self.source.published)) for read in reads):
                return Look(reads=reads, behind=behind)
        checked = self.source.check({s: witnessed(p, self.source.published) for s, p in positions.items()})
        turns = [turn for s, seen in checked.sightings.items() if (turn := self._turn(seen)) is not None]
        self._checked_at = dict.fromkeys(positions, now)
        moved = {turn.end.stream for turn in turns if turn.end.behind != positions[turn.end.stream].behind}
        reads = [read for read in checked.reads if read.stream not in moved]
        return Look(reads=reads, behind=checked.full or bool(moved), turns=turns)

    def unlogged(self, read: StreamRead, admitted: Admitted) -> Admitted:
        """What of a read is not logged already."""
        logged = self._logged.get(read.stream)
        if logged is None or not read.ids:
            return admitted
        fresh = logged.skip(admitted)
        older = dict.fromkeys(logged.superseded(fresh.changes), SUPERSEDED)
        if older:
            decoded = Decoded(read=read, changes=fresh.changes, rejections=fresh.rejections)
            fresh = Admitted(changes=without(fresh.changes, older), rejections=with_rejections(decoded, older))
        if rows_of(fresh) < rows_of(admitted):
            log.info("entries_skipped", stream=read.stream, changes=rows_of(admitted) - rows_of(fresh))
        if entry_order(read.ids[-1].decode()) >= entry_order(logged.through):
            self._logged.pop(read.stream).close()
        return fresh

    def _turn(self, seen: Sighting) -> Chunk | None:
        """Judge one look. A changed history is acted on only on a new connection, when all that was read is logged."""
        position, first = seen.position, seen.position.stream not in self._checked_at
        seen = evolve(seen, fresh=first, exact_at=self._exact_at.get(position.stream))
        verdict = judge(seen)
        if verdict.doubtful_from is not None:
            verdict = self._settled(seen, verdict.doubtful_from)
        if verdict.position.stream_epoch != position.stream_epoch:
            if not first:
                raise SourceTurned(f"stream {position.stream!r} is not the one that was read")
            verdict = self._named(seen, verdict)
        elif seen.at_tail:
            self._exact_at[position.stream] = EntryId(position.last_entry_id)
        self._remember_logged(verdict.position, first=first)
        if verdict.gap is not None:
            log.error("stream_gap", **{k: getattr(verdict.gap, k) for k in ("stream", "entries_lost", "cause")})
        return turn_of(position, verdict) if verdict.turned else None

    def _named(self, seen: Sighting, verdict: Verdict) -> Verdict:
        """Tell a failover from a restored copy, and say where doubles cannot be excluded any more."""
        assert verdict.gap is not None
        gap, stream = verdict.gap, seen.position.stream
        if gap.cause == GapCause.RESTORED and self.source.promoted():
            gap = evolve(gap, cause=GapCause.FAILOVER)
        oldest, first = oldest_logged(self.session, stream), seen.about.first_entry_id
        if oldest is not None and first is not None:
            first = max(first, verdict.position.behind, key=entry_order)
            limit = oldest if oldest != NO_ENTRY else seen.position.last_entry_id
            if entry_order(first) < entry_order(limit):
                gap = evolve(gap, cause=f"{gap.cause}; possible duplicates: the log no longer holds them all")
        return evolve(verdict, gap=gap)

    def _remember_logged(self, position: StreamPosition, *, first: bool) -> None:
        limit = position.known_through
        if first and limit is not None and entry_order(limit) > entry_order(position.behind):
            self._logged[position.stream] = Logged.behind(self.session, position.stream, position.behind)

    def _settled(self, seen: Sighting, group: EntryId) -> Verdict:
        """The group stands behind the log: was our last publish cut off, or was Redis rolled back? Read again and see."""
        if self._stands(seen.position, group):
            return evolve(judge(evolve(seen, fresh=False)), turned=True)
        return anew(seen, GapCause.RESTORED if seen.about.group_entry_id else GapCause.RECREATED)

    def _stands(self, position: StreamPosition, group: EntryId) -> bool:
        """Whether Redis still holds our last entry, and all between the group and it that it holds is as we logged it."""
        logged = Logged.behind(self.session, position.stream, group)
        last, first, again, found_last = position.behind, None, 0, False
        at = evolve(position, last_entry_id=group, last_entry_row=None)
        while entry_order(at.last_entry_id) < entry_order(last):
            reads, _ = self.source.read({position.stream: at}, block_seconds=0.001)
            if not reads:
                break
            first = first or EntryId(reads[0].ids[0].decode())
            admitted = through(self.admit(reads[0]), last)
            again += rows_of(admitted) - rows_of(logged.skip(admitted))
            at = evolve(at, last_entry_id=EntryId(reads[0].ids[-1].decode()))
            found_last = last.encode() in reads[0].ids
        expected = logged.rows_between(first, last, position.stream_epoch) if first else 0
        logged.close()
        return first is not None and found_last and again >= expected


def turn_of(position: StreamPosition, verdict: Verdict) -> Chunk:
    """A chunk that moves no change: the new position, and the gap that belongs to it."""
    return Chunk.turn(position, verdict.position, () if verdict.gap is None else (verdict.gap,))


def witnessed(position: StreamPosition, published: Mapping[str, tuple[int, EntryId]]) -> StreamPosition:
    """The position with the last id of its epoch that Redis is known to have witnessed."""
    epoch, entry_id = published.get(position.stream, (0, NO_ENTRY))
    return evolve(position, published_entry_id=entry_id) if epoch == position.stream_epoch else position

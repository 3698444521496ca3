"""What one checked look at a stream means: read on, entries were lost, or its history is another. Pure.

Guarantees: where Redis counts (7.0, Valkey) a loss is found with its exact number, whatever the ids say; where it
does not, a loss that cannot be excluded is called possible. Never moves a position past an entry that can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve, field, frozen

from replicator.decode import StreamRead
from replicator.model import NO_ENTRY, EntryId, Gap, GapCause, StreamPosition, entry_order


@frozen(kw_only=True)
class StreamDescription:
    """What Redis says of a stream and of our group on it. Figures that the server is too old to know are None."""

    exists: bool
    length: int = 0
    last_entry_id: EntryId = NO_ENTRY
    """The last id ever given, of an entry that may have gone."""
    first_entry_id: EntryId | None = None
    entries_added: int | None = None
    deleted_entry_id: EntryId | None = None
    """The highest id that XDEL has removed."""
    group_entry_id: EntryId | None = None
    group_entries_read: int | None = None


@frozen(kw_only=True)
class Sighting:
    """One MULTI: the stream's description, and how many entries XREAD gave behind ``position`` at that instant.

    ``at_tail``: XREAD gave all there are. ``published``: where our group is known to have stood. ``fresh``: the first
    look of a new connection. ``exact_at``: where an earlier look found everything accounted for.
    """

    position: StreamPosition
    about: StreamDescription
    entries: int = 0
    at_tail: bool = True
    published: EntryId | None = None
    head_witnessed: bool = True
    """Whether our key with the published head is there."""
    fresh: bool = False
    exact_at: EntryId | None = None


@frozen(kw_only=True)
class Checked:
    """What one checked look at several streams gave: the entries behind each position, and what to judge them by."""

    reads: Sequence[StreamRead]
    full: bool
    """Whether more entries wait than were read."""
    sightings: Mapping[str, Sighting]


@frozen(kw_only=True)
class Verdict:
    """``position`` is where to read on. ``turned``: it is another history, or a figure that must be stored."""

    position: StreamPosition
    gap: Gap | None = None
    turned: bool = False
    doubtful_from: EntryId | None = field(default=None)
    """The group stands here, behind what is logged; whether the stream was rolled back is to be found out by reading."""


def judge(seen: Sighting) -> Verdict:
    """What this look means for the stream."""
    position, about = seen.position, seen.about
    if is_untouched(position, seen.published):
        return _account(_restarted(seen)) if about.exists else _awaited(position)
    cause = _another_history(seen)
    if cause is not None:
        return anew(seen, cause)
    group = about.group_entry_id or NO_ENTRY
    if seen.fresh and entry_order(group) < entry_order(position.behind):
        return Verdict(position=position, doubtful_from=group)
    return _account(seen)


def is_untouched(position: StreamPosition, published: EntryId | None = None) -> bool:
    """Whether nothing of this stream was ever read or published, so that nothing can be missed."""
    witnessed = published if published is not None else position.published_entry_id
    return witnessed is None and position.entries_read == 0 and position.last_entry_row is None


def _awaited(position: StreamPosition) -> Verdict:
    """No entry was added yet, so that each one added from now on is to be read: nothing is unread of those before."""
    if position.entries_unread is not None or position.behind != NO_ENTRY:
        return Verdict(position=position)
    return Verdict(position=evolve(position, entries_unread=0), turned=True)


def _restarted(seen: Sighting) -> Sighting:
    """A stream that was gone and comes back with our group is not a new one: what it had before is not ours to count."""
    if seen.position.stream_epoch == 1 or seen.about.group_entry_id is None:
        return seen
    return evolve(seen, position=evolve(seen.position, entries_unread=None))


def _another_history(seen: Sighting) -> GapCause | None:
    """Why this cannot be the stream that we read, None when it may be."""
    position, about = seen.position, seen.about
    wiped = None if seen.head_witnessed else GapCause.FLUSHED
    if not about.exists:
        return wiped or GapCause.DELETED
    if about.group_entry_id is None and seen.published is not None:
        return wiped or GapCause.RECREATED
    older = GapCause.RESTORED if _group_fits(about) else wiped or GapCause.RECREATED
    if entry_order(about.last_entry_id) < entry_order(position.behind):
        return older
    group, published = about.group_entry_id, seen.published
    if group is not None and published is not None and entry_order(group) < entry_order(published):
        return older
    unread = unread_entries(seen)
    return older if unread is not None and unread < 0 else None


def _group_fits(about: StreamDescription) -> bool:
    return about.group_entry_id is not None and entry_order(about.group_entry_id) <= entry_order(about.last_entry_id)


def anew(seen: Sighting, cause: GapCause) -> Verdict:
    """The stream's ids began anew: read on from where its group stands, under a new epoch; from the beginning where the
    group has passed what this log, which went back itself, has never read.

    What was added behind our position before that can be lost without a trace: the gap has no number. How many
    entries the group has passed is our own figure of the history that is gone: the first tail gives another.
    """
    position, about = seen.position, seen.about
    group = about.group_entry_id or NO_ENTRY
    start = group if _group_fits(about) and entry_order(group) <= entry_order(position.behind) else NO_ENTRY
    turned = StreamPosition(
        stream=position.stream,
        stream_epoch=position.stream_epoch + 1,
        last_entry_id=start,
        entries_unread=_added_and_gone(about) if start == NO_ENTRY else None,
        published_entry_id=about.group_entry_id,
        known_through=max(position.known_through or NO_ENTRY, position.last_entry_id, key=entry_order),
    )
    gap = Gap(
        stream=position.stream,
        after_entry_id=position.last_entry_id,
        before_entry_id=None,
        entries_lost=None,
        cause=cause,
    )
    return Verdict(position=turned, gap=gap, turned=True)


def _added_and_gone(about: StreamDescription) -> int | None:
    return None if about.entries_added is None and about.exists else (about.entries_added or 0) - about.length


def available_entries(seen: Sighting) -> int | None:
    """How many entries behind the position can still be read; None when this look cannot tell."""
    if seen.at_tail:
        return seen.entries
    first = seen.about.first_entry_id
    if first is None or entry_order(first) > entry_order(seen.position.behind):
        return seen.about.length
    return None


def unread_entries(seen: Sighting) -> int | None:
    """How many entries were added behind the position and cannot be read; None when this look cannot tell."""
    added, unread, available = seen.about.entries_added, seen.position.entries_unread, available_entries(seen)
    if added is None or unread is None or available is None:
        return None
    return added - unread - seen.position.entries_read - available


def _account(seen: Sighting) -> Verdict:
    """The same history: compare what was added with what was read and what can be read."""
    position, about = seen.position, seen.about
    if about.entries_added is None:
        return _account_by_ids(seen)
    lost, available = unread_entries(seen), available_entries(seen)
    if available is None:
        return Verdict(position=position, turned=_unwitnessed(seen))
    if lost is None or lost < 0:
        based = evolve(position, entries_unread=about.entries_added - position.entries_read - available)
        return Verdict(position=based, turned=True)
    if lost == 0:
        return Verdict(position=position, turned=_unwitnessed(seen))
    based = evolve(position, entries_unread=(position.entries_unread or 0) + lost)
    return Verdict(position=based, gap=_gap(seen, lost), turned=True)


def _unwitnessed(seen: Sighting) -> bool:
    """Whether Redis has yet to learn where the log stands."""
    return seen.fresh and seen.about.group_entry_id != seen.position.behind


def _gap(seen: Sighting, lost: int | None) -> Gap:
    """Trimmed entries lie between our position and the first that is left; deleted ones anywhere since the last look."""
    behind, first = seen.position.behind, seen.about.first_entry_id
    deleted = entry_order(seen.about.deleted_entry_id or NO_ENTRY) > entry_order(behind)
    trimmed = not deleted or lost is None
    return Gap(
        stream=seen.position.stream,
        after_entry_id=seen.position.last_entry_id if trimmed else seen.exact_at,
        before_entry_id=first if trimmed and first and entry_order(first) > entry_order(behind) else None,
        entries_lost=lost,
        cause=GapCause.TRIMMED if trimmed else GapCause.DELETED,
    )


def _account_by_ids(seen: Sighting) -> Verdict:
    """Redis before 7.0 does not count: a loss is possible when no entry is left that we have read, and newer ones were added."""
    position, about = seen.position, seen.about
    behind, last = entry_order(position.behind), entry_order(about.last_entry_id)
    first = about.first_entry_id
    if last <= behind or (first is not None and entry_order(first) <= behind) or position.entries_read == 0:
        return Verdict(position=position, turned=_unwitnessed(seen))
    passed = position if first else evolve(position, last_entry_id=about.last_entry_id, last_entry_row=None)
    return Verdict(position=passed, gap=_gap(seen, None), turned=True)

"""What a checked look at a stream means, decided without Redis."""

from __future__ import annotations

import random

import pytest
from attrs import define, evolve, field

from replicator.model import NO_ENTRY, EntryId, GapCause, StreamPosition, entry_order
from replicator.witness import Sighting, StreamDescription, judge

AT = StreamPosition(
    stream="s",
    last_entry_id=EntryId("50-0"),
    entries_read=50,
    entries_unread=0,
    published_entry_id=EntryId("50-0"),
)
THERE = StreamDescription(
    exists=True,
    length=50,
    last_entry_id=EntryId("50-0"),
    first_entry_id=EntryId("1-0"),
    entries_added=50,
    deleted_entry_id=NO_ENTRY,
    group_entry_id=EntryId("50-0"),
    group_entries_read=50,
)


def seen(position: StreamPosition = AT, about: StreamDescription = THERE, **more: object) -> Sighting:
    return Sighting(position=position, about=about, published=position.published_entry_id, **more)


def test_nothing_happened() -> None:
    verdict = judge(seen())
    assert verdict.position == AT and verdict.gap is None and not verdict.turned


def test_the_first_look_takes_the_baseline_from_what_can_be_read() -> None:
    about = evolve(THERE, length=20, entries_added=70, group_entry_id=None, first_entry_id=EntryId("51-0"))
    verdict = judge(seen(StreamPosition(stream="s"), about, entries=10, at_tail=False))
    assert verdict.position.entries_unread == 50 and verdict.gap is None and verdict.turned


def test_a_stream_that_is_not_there_yet_has_its_baseline_before_its_first_entry() -> None:
    absent = StreamDescription(exists=False)
    verdict = judge(seen(StreamPosition(stream="s"), absent, fresh=True))
    assert verdict.turned and verdict.gap is None and verdict.position.entries_unread == 0
    assert not judge(seen(verdict.position, absent)).turned
    later = judge(seen(verdict.position, evolve(THERE, length=20, group_entry_id=None), entries=20))
    assert later.gap is not None and later.gap.entries_lost == 30
    chosen = StreamPosition(stream="s", last_entry_id=EntryId("20-0"))
    assert judge(seen(chosen, absent)).position == chosen, "entries below the chosen start may come, and are not read"


def test_a_history_that_the_log_lost_with_an_older_copy_is_read_from_its_beginning() -> None:
    """Its group stands where the log stood before: behind entries that this log has not read."""
    position = evolve(AT, published_entry_id=None, known_through=EntryId("61-0"))
    about = evolve(THERE, length=1, entries_added=1, group_entry_id=EntryId("61-0"), last_entry_id=EntryId("61-0"))
    about = evolve(about, first_entry_id=EntryId("61-0"), group_entries_read=1)
    verdict = judge(seen(position, about, entries=1, fresh=True))
    assert verdict.position.stream_epoch == 2 and verdict.position.last_entry_id == NO_ENTRY
    assert verdict.gap is not None and verdict.gap.cause == GapCause.RESTORED


def test_no_baseline_is_taken_while_it_cannot_be_known() -> None:
    middle = StreamPosition(stream="s", last_entry_id=EntryId("20-0"))
    verdict = judge(seen(middle, evolve(THERE, group_entry_id=None), entries=10, at_tail=False))
    assert verdict.position == middle and not verdict.turned


@pytest.mark.parametrize(
    ("about", "head", "cause"),
    [
        (StreamDescription(exists=False), True, GapCause.DELETED),
        (StreamDescription(exists=False), False, GapCause.FLUSHED),
        (evolve(THERE, group_entry_id=None), True, GapCause.RECREATED),
        (evolve(THERE, group_entry_id=None), False, GapCause.FLUSHED),
        (evolve(THERE, group_entry_id=EntryId("40-0")), True, GapCause.RESTORED),
        (evolve(THERE, last_entry_id=EntryId("40-0"), group_entry_id=EntryId("40-0")), True, GapCause.RESTORED),
        (evolve(THERE, last_entry_id=EntryId("9-0")), True, GapCause.RECREATED),
        (evolve(THERE, entries_added=45), True, GapCause.RESTORED),
    ],
)
def test_another_history_begins_a_new_epoch(about: StreamDescription, head: bool, cause: GapCause) -> None:
    verdict = judge(seen(about=about, head_witnessed=head))
    assert verdict.gap is not None and verdict.gap.cause == cause and verdict.gap.entries_lost is None
    assert verdict.gap.after_entry_id == "50-0"
    assert verdict.position.stream_epoch == 2 and verdict.position.known_through == "50-0"
    fits = about.group_entry_id is not None and entry_order(about.group_entry_id) <= entry_order(about.last_entry_id)
    assert verdict.position.last_entry_id == (about.group_entry_id if fits else NO_ENTRY)


def test_a_group_behind_the_log_is_doubtful_only_on_a_new_connection() -> None:
    position = evolve(AT, published_entry_id=EntryId("40-0"))
    about = evolve(THERE, group_entry_id=EntryId("45-0"))
    assert judge(seen(position, about)).doubtful_from is None
    assert judge(seen(position, about, fresh=True)).doubtful_from == "45-0"


def test_a_restart_lets_redis_witness_what_it_missed() -> None:
    assert not judge(seen(fresh=True)).turned
    untouched = StreamPosition(stream="s", entries_unread=0)
    assert judge(seen(untouched, evolve(THERE, group_entry_id=None, length=50), fresh=True)).turned


def test_an_entry_logged_in_part_counts_as_still_to_be_read() -> None:
    part = evolve(AT, last_entry_row=3, entries_read=49, published_entry_id=EntryId("49-0"))
    group = evolve(THERE, group_entry_id=EntryId("49-0"))
    assert judge(seen(part, group, entries=1)).gap is None
    gone = judge(seen(part, evolve(group, length=0, first_entry_id=None), entries=0)).gap
    assert gone is not None and gone.entries_lost == 1


@pytest.mark.parametrize(
    ("about", "entries"),
    [
        (evolve(THERE, entries_added=None, last_entry_id=EntryId("60-0")), 10),
        (evolve(THERE, entries_added=None, first_entry_id=EntryId("30-0"), last_entry_id=EntryId("60-0")), 10),
        (evolve(THERE, entries_added=None, first_entry_id=EntryId("50-0")), 0),
        (evolve(THERE, entries_added=None, first_entry_id=None, length=0), 0),
    ],
)
def test_an_old_server_reports_nothing_while_what_was_read_is_still_there(
    about: StreamDescription, entries: int
) -> None:
    assert judge(seen(about=about, entries=entries)).gap is None


def test_an_old_server_that_trimmed_everything_moves_the_position_once() -> None:
    about = evolve(THERE, entries_added=None, first_entry_id=None, length=0, last_entry_id=EntryId("60-0"))
    verdict = judge(seen(about=about))
    assert verdict.gap is not None and verdict.gap.entries_lost is None
    assert verdict.position.last_entry_id == "60-0"
    assert judge(seen(verdict.position, about)).gap is None


@define
class ModelStream:
    """A stream as Redis counts it, and a reader that looks and reads."""

    entries: list[int] = field(factory=list)
    added: int = 0
    deleted: int = 0
    position: StreamPosition = field(factory=lambda: StreamPosition(stream="s"))
    read: list[int] = field(factory=list)
    lost: int = 0

    def add(self, count: int) -> None:
        self.entries += range(self.added + 1, self.added + count + 1)
        self.added += count

    def trim(self, count: int) -> None:
        del self.entries[:count]

    def delete(self, place: int) -> None:
        self.deleted = max(self.deleted, self.entries.pop(place % len(self.entries)))

    def take(self, count: int, *, checked: bool) -> None:
        last = entry_order(self.position.last_entry_id)[0]
        got = [n for n in self.entries if n > last][:count]
        if checked:
            self.look(len(got), at_tail=len(got) < count)
        self.read += got
        if got:
            self.position = evolve(
                self.position, last_entry_id=EntryId(f"{got[-1]}-0"), entries_read=self.position.entries_read + len(got)
            )
            self.position = evolve(self.position, published_entry_id=self.position.last_entry_id)

    def look(self, entries: int, *, at_tail: bool) -> None:
        about = StreamDescription(
            exists=True,
            length=len(self.entries),
            last_entry_id=EntryId(f"{self.added}-0"),
            first_entry_id=EntryId(f"{self.entries[0]}-0") if self.entries else None,
            entries_added=self.added,
            deleted_entry_id=EntryId(f"{self.deleted}-0"),
            group_entry_id=self.position.published_entry_id,
        )
        verdict = judge(seen(self.position, about, entries=entries, at_tail=at_tail))
        assert verdict.position.stream_epoch == 1
        self.position = verdict.position
        self.lost += (verdict.gap.entries_lost or 0) if verdict.gap else 0


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_trimmed_and_deleted_every_entry_is_read_or_counted_as_lost(seed: int) -> None:
    dice, stream = random.Random(seed), ModelStream()
    stream.look(0, at_tail=True)
    for _ in range(60):
        act = dice.random()
        if act < 0.4:
            stream.add(dice.randint(1, 20))
        elif act < 0.55:
            stream.trim(dice.randint(0, 30))
        elif act < 0.65 and stream.entries:
            stream.delete(dice.randint(0, 1000))
        else:
            stream.take(dice.choice((1, 5, 1000)), checked=dice.random() < 0.6)
    stream.take(100_000, checked=True)
    stream.take(100_000, checked=True)
    assert len(stream.read) + stream.lost == stream.added, f"seed {seed}"
    assert stream.read == sorted(set(stream.read))


def test_a_new_epoch_takes_its_baseline_at_its_first_tail_not_from_the_old_history() -> None:
    """What the group has passed was our own figure of a history that is gone: believed, it would contradict the new one for ever."""
    about = evolve(THERE, length=6, entries_added=6, group_entry_id=EntryId("40-0"), group_entries_read=8)
    turned = judge(seen(AT, about, entries=0)).position
    assert (turned.stream_epoch, turned.last_entry_id, turned.entries_unread) == (2, "40-0", None)
    again = judge(seen(evolve(turned, last_entry_id=EntryId("50-0"), entries_read=2), about))
    assert again.gap is None and again.position.entries_unread == 4

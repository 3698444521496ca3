"""Idempotency keys: the same id with the same content is logged once within the window; another content is kept, and counted.

Guarantees: an id is claimed in the transaction that logs its change, so that it survives restart and retention and a
rejected entry claims none; the scope of an id is its stream and table. Whole columns at a time; costs one look at a
null count where entries carry no id.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from attrs import define, field, frozen

from replicator.admit import Admitted
from replicator.database import Session, now, statement

LATEST_RUNS = 16
RECENT_PART = 4
"""The recent ids are merged into the old when they are more than one in so many of these."""
TRIM_SECONDS = 60.0
Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
FILTER_BITS = 24
FILTER_SHIFT = np.uint64(64 - FILTER_BITS)
MARKS_LOADED = 1_000


@frozen(kw_only=True)
class Window:
    """How long an id is remembered, and how many are. Either 0: none is."""

    seconds: float
    ids: int

    @property
    def is_open(self) -> bool:
        return self.seconds > 0 and self.ids > 0


@frozen(kw_only=True)
class Claims:
    """Ids by their hashes, sorted, with the content and the number of each claim."""

    ids: Hashes
    contents: Hashes
    numbers: Numbers

    @classmethod
    def of(cls, ids: Hashes, contents: Hashes, numbers: Numbers) -> Claims:
        order = np.argsort(ids, kind="stable")  # linear where two sorted runs follow each other
        return cls(ids=ids[order], contents=contents[order], numbers=numbers[order])

    @classmethod
    def none(cls) -> Claims:
        return cls.of(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))

    @classmethod
    def merged(cls, runs: Sequence[Claims]) -> Claims:
        return cls.of(
            np.concatenate([run.ids for run in runs]),
            np.concatenate([run.contents for run in runs]),
            np.concatenate([run.numbers for run in runs]),
        )

    def since(self, number: int) -> Claims:
        mask = self.numbers >= number
        return Claims(ids=self.ids[mask], contents=self.contents[mask], numbers=self.numbers[mask])

    def find(self, ids: Hashes, contents: Hashes, lowest: int) -> tuple[Mask, Mask]:
        """For each (id, content): whether a claim from ``lowest`` on is of this id, and whether with this content."""
        claimed = same = np.zeros(len(ids), dtype=bool)
        place = np.searchsorted(self.ids, ids)
        while len(self.ids):
            here = np.minimum(place, len(self.ids) - 1)
            equal = (place < len(self.ids)) & (self.ids[here] == ids)
            if not equal.any():
                break
            valid = equal & (self.numbers[here] >= lowest)
            claimed, same = claimed | valid, same | (valid & (self.contents[here] == contents))
            place = np.where(equal, place + 1, len(self.ids))
        return claimed, same


@define
class IdMemory:
    """The claims within the window, numbered as they were made. ``clock`` gives seconds.

    A byte per part of the hashes' range says whether any claim lies in it: most new ids are known to be new by one
    look at it, and only the rest are searched for.
    """

    window: Window
    clock: Callable[[], float] = time.time
    _old: Claims = field(factory=Claims.none)
    _recent: Claims = field(factory=Claims.none)
    _latest: list[Claims] = field(factory=list)
    """Those of single reads, merged now and then into the recent, and these into the old."""
    _met: npt.NDArray[np.bool_] = field(factory=lambda: np.zeros(1 << FILTER_BITS, dtype=bool))
    _next: int = 0
    _marks: deque[tuple[float, int]] = field(factory=deque)
    """When which number was the next one, the oldest first."""

    def load(self, ids: Hashes, contents: Hashes, at: npt.NDArray[np.float64]) -> None:
        """Take claims made earlier, the oldest first."""
        self._old = Claims.of(ids, contents, np.arange(len(ids), dtype=np.int64))
        self._next = len(ids)
        step = max(1, len(ids) // MARKS_LOADED)
        ends = (min(i + step, len(ids)) - 1 for i in range(0, len(ids), step))
        self._marks = deque((float(at[end]), i * step) for i, end in enumerate(ends))
        self._met[self._old.ids >> FILTER_SHIFT] = True

    def __len__(self) -> int:
        return sum(len(run.ids) for run in (self._old, self._recent, *self._latest))

    def claim(self, ids: Hashes, contents: Hashes) -> tuple[Mask, int]:
        """Claim ids in the order read. Returns which are new to the window, and how many of those are conflicts."""
        lowest, parts = self._lowest(), ids >> FILTER_SHIFT
        new, claimed = np.ones(len(ids), dtype=bool), np.zeros(len(ids), dtype=bool)
        doubtful = np.flatnonzero(self._met[parts])
        for run in (self._old, self._recent, *self._latest):
            found, same = run.find(ids[doubtful], contents[doubtful], lowest)
            claimed[doubtful] |= found
            new[doubtful] &= ~same
        own = Claims.of(ids, contents, np.arange(len(ids), dtype=np.int64))
        if (own.ids[1:] == own.ids[:-1]).any():
            first, repeated = _first_of_each(ids, contents)
            new, claimed = new & first, claimed | repeated
        self._remember(own, new, lowest)
        self._met[parts] = True
        return new, int((new & claimed).sum())

    def _remember(self, own: Claims, new: Mask, lowest: int) -> None:
        kept, ranks = new[own.numbers], np.cumsum(new) - 1
        numbers = ranks[own.numbers[kept]] + self._next
        fresh = Claims(ids=own.ids[kept], contents=own.contents[kept], numbers=numbers)
        self._marks.append((self.clock(), self._next))
        self._next += len(numbers)
        self._latest.append(fresh)
        if len(self._latest) < LATEST_RUNS:
            return
        self._recent, self._latest = Claims.merged((self._recent, *self._latest)), []
        if len(self._recent.ids) * RECENT_PART > len(self._old.ids):
            self._old, self._recent = Claims.merged((self._old, self._recent)).since(lowest), Claims.none()
            self._met[:] = False
            self._met[self._old.ids >> FILTER_SHIFT] = True

    def _lowest(self) -> int:
        """The oldest number within the window. What was loaded counts in groups, each as old as its last claim."""
        oldest = self.clock() - self.window.seconds
        while self._marks and self._marks[0][0] < oldest:
            self._marks.popleft()
        first = self._marks[0][1] if self._marks else self._next
        return max(first, self._next - self.window.ids)


def _first_of_each(ids: Hashes, contents: Hashes) -> tuple[Mask, Mask]:
    """Within one read: which rows are the first of their (id, content), and which of those repeat an id with another content."""
    order = np.lexsort((contents, ids))
    same_id = np.zeros(len(ids), dtype=bool)
    same_both = np.zeros(len(ids), dtype=bool)
    if len(ids) > 1:
        left, right = order[:-1], order[1:]
        same_id[1:] = ids[left] == ids[right]
        same_both[1:] = same_id[1:] & (contents[left] == contents[right])
    first, repeated = np.empty(len(ids), dtype=bool), np.empty(len(ids), dtype=bool)
    first[order], repeated[order] = ~same_both, same_id & ~same_both
    return first, repeated


@frozen(kw_only=True)
class Unique:
    """What of a read is not logged under its id already; what was dropped, and what is logged beside another content."""

    admitted: Admitted
    dropped: int = 0
    conflicts: int = 0


@define
class Dedup:
    """Drops repeated changes of one run of capture. Loads the claims of earlier ones when the first id is met.

    Shared by the reading thread and the appending one, which readmits; ``session`` is its own.
    """

    session: Session
    window: Window
    _memory: IdMemory | None = None
    _lock: threading.Lock = field(factory=threading.Lock)
    _trim_at: float = field(factory=lambda: time.monotonic() + TRIM_SECONDS)

    def unique(self, admitted: Admitted) -> Unique:
        changes = admitted.changes
        if not self.window.is_open or changes["event_id"].null_count == changes.num_rows:
            return Unique(admitted=admitted)
        with self._lock:
            return self._claimed(admitted)

    def _claimed(self, admitted: Admitted) -> Unique:
        changes = admitted.changes
        named = pc.is_valid(changes["event_id"])
        with self.session.relation(new_changes=changes.filter(named) if changes["event_id"].null_count else changes):
            found = self.session.arrow(statement("dedup/hashes"))
        ids, contents = found["id_hash"].to_numpy(), found["content_hash"].to_numpy()
        new, conflicts = self._loaded().claim(ids, contents)
        self._trim()
        dropped = len(new) - int(new.sum())
        if dropped:
            mask = np.ones(changes.num_rows, dtype=bool)
            mask[np.flatnonzero(named.to_numpy())[~new]] = False
            admitted = Admitted(changes=changes.filter(pa.array(mask)), rejections=admitted.rejections)
        return Unique(admitted=admitted, dropped=dropped, conflicts=conflicts)

    def _loaded(self) -> IdMemory:
        if self._memory is None:
            rehash_claims(self.session, self.window)
            oldest = now() - timedelta(seconds=self.window.seconds)
            found = self.session.arrow(statement("dedup/claims"), {"oldest": oldest, "ids": self.window.ids})
            self._memory = IdMemory(self.window)
            self._memory.load(*(found[name].to_numpy() for name in ("id_hash", "content_hash", "claimed_at")))
        return self._memory

    def _trim(self) -> None:
        """Now and then forget what has left the window."""
        if time.monotonic() < self._trim_at:
            return
        self._trim_at = time.monotonic() + TRIM_SECONDS
        oldest = now() - timedelta(seconds=self.window.seconds)
        self.session.execute(statement("dedup/trim"), {"oldest": oldest, "ids": self.window.ids})


def rehash_claims(session: Session, window: Window) -> None:
    """Another release of DuckDB may hash differently: then the claims are made anew from the log. Old ones are dropped."""
    oldest = now() - timedelta(seconds=window.seconds)
    hashed = session.rows("select hash('claims', 1)::varchar")[0][0]
    with session.transaction():
        row = session.row("select value from meta where key = 'claims_hash'")
        if row is not None and row[0] == hashed:
            session.execute("delete from claimed_ids where claimed_at < ?", [oldest])
            return
        session.execute("delete from claimed_ids")
        session.execute(statement("dedup/claim_logged"), {"oldest": oldest})
        session.execute("delete from meta where key = 'claims_hash'")
        session.execute("insert into meta values ('claims_hash', ?)", [hashed])

"""What must hold, kept beside the run: promises 1 to 3 of the design, held against log, sink and producer after every step.

The model knows what the producers wrote and what each offset was ever seen to mean; it reads what is committed, never
what the service remembers. Faults that take something away say so here, and it is excused until it is mended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from attrs import define, field, frozen
from simulation.clickhouse_end import SimClickHouse
from simulation.disk import Disk
from simulation.redis_end import SimRedis

from replicator.model import GENERIC_LANE, entry_order
from replicator.sink import LEDGER

VOID = -1
LANES = {GENERIC_LANE: GENERIC_LANE, "orders": "orders_log"}
_MARK = re.compile(rb'"n":\s*(\d+)')


class BrokenPromiseError(AssertionError):
    """What must hold does not."""


@frozen(kw_only=True)
class Written:
    """What a producer wrote: ``mark`` is its number among all that was ever written."""

    mark: int
    stream: str
    entry_id: str
    key: str
    op: str


@frozen(kw_only=True)
class Logged:
    """One row of the log. ``lane`` is None for a void row."""

    offset: int
    version: int
    mark: int
    lane: str | None
    stream: str
    epoch: int
    entry_id: str
    key: str
    op: str


def mark_of(raw: Any) -> int:
    data = raw if isinstance(raw, bytes) else str(raw).encode()
    found = _MARK.search(data)
    return int(found[1]) if found else VOID


@define(eq=False)
class Model:
    disk: Disk
    redis: SimRedis
    sink: SimClickHouse
    written: dict[int, Written] = field(factory=dict)
    meant: dict[int, tuple[int, int]] = field(factory=dict)
    """What each offset was seen to mean: version and mark."""
    once: dict[int, set[tuple[int, int]]] = field(factory=dict)
    """What each meant before it was void."""
    doubtful: set[int] = field(factory=set)
    """Offsets that the log has lost; free to be given away where nobody else has seen them."""
    excused: set[tuple[str, int]] = field(factory=set)
    """Lane and offset of what the sink has lost and nobody has noticed."""
    checkpoints: dict[str, int] = field(factory=dict)
    histories: set[str] = field(factory=set)
    """Streams whose history was changed, so that a gap need not have a number."""
    thinned: set[str] = field(factory=set)
    """Streams that have lost entries."""
    unknowable: set[int] = field(factory=set)
    """Marks that were gone before anybody looked."""
    tokens_forgotten: bool = False
    """ClickHouse was made to remember too few."""
    log_returned: bool = False
    sink_returned: bool = False
    log: dict[int, Logged] = field(factory=dict)
    _commits: int = -1
    _changed: int = -1

    # ── what faults say ──

    @contextmanager
    def redis_loses(self, *streams: str, history: bool = False, rollback: bool = False) -> Iterator[None]:
        """Around what takes entries from Redis. What goes before our group stands on the stream is nobody's to count, nor
        what was added and rolled back between two looks, nor a stream that goes whole before the log has seen it.
        """
        before, looked = self.in_redis(), set()
        sql = "select stream, published_entry_id from stream_positions where entries_unread is not null"
        for name, published in self.disk.rows(sql):
            stream = self.redis.stream(name)
            stands = stream is not None and b"replicator:main" in stream.groups
            if stands and not rollback and (published is not None or not history):
                looked.add(name)
        yield
        self.histories |= set(streams) if history else set()
        self.thinned |= set(streams)
        there = self.in_redis()
        self.unknowable |= {mark for mark in before.keys() - there.keys() if before[mark] not in looked}
        if history:  # what counted the losses of before goes with it, and what witnessed the head
            unseen = set(streams) - looked
            self.unknowable |= (
                {w.mark for w in self.written.values() if w.stream in unseen} - there.keys() - self.kept()
            )
            self.settle_doubt()

    def sink_lost(self, before: set[tuple[str, int]]) -> None:
        self.sink_returned = True
        self.excused |= before - self.held()

    def log_went_back(self) -> None:
        """The file is older now: what it has lost is free, unless somebody has seen it."""
        self.log_returned = True
        self.checkpoints.clear()
        before, log = {row.mark for row in self.log.values()}, self.read_log()
        self.doubtful |= {offset for offset in self.meant if offset > max(log, default=0)}
        for row in log.values():
            if (row.version, row.mark) in self.once.get(row.offset, ()):  # it was void in between
                self.meant[row.offset] = (row.version, row.mark)
        self.log = log
        self._forget_losses(before)

    def _forget_losses(self, before: set[int]) -> None:
        """What had been lost already is in no gap of the older file; nor need it be where that knew no baseline."""
        there, kept = self.in_redis(), self.kept()
        looked = {
            name for (name,) in self.disk.rows("select stream from stream_positions where entries_unread is not null")
        }
        for mark, written in self.written.items():
            gone = mark not in there and mark not in kept
            if gone and (mark not in before or written.stream not in looked):
                self.unknowable.add(mark)

    def sink_lost_in_flight(self, target: str, offsets: Iterable[int]) -> None:
        lane = next(lane for lane, name in LANES.items() if name == target)
        self.excused |= {(lane, offset) for offset in offsets}
        self.sink_returned = True

    def settle_doubt(self) -> None:
        """A process looks at its witnesses: what they show beyond the log is not free."""
        seen = max([self.published_head(), *(offset for _, offset in self.held()), *self.ledger_tops()], default=0)
        for offset in [offset for offset in self.doubtful if offset > seen]:
            self.doubtful.discard(offset)
            self.meant.pop(offset, None)

    def published_head(self) -> int:
        value = self.redis.keys.get(b"replicator:main:head")
        return int(value.partition(b":")[2]) if isinstance(value, bytes) else 0

    def ledger_tops(self) -> Iterable[int]:
        return [row.last_offset for row in self.sink.ledger.values()] if LEDGER in self.sink.objects else []

    # ── reading ──

    def read_log(self) -> dict[int, Logged]:
        sql = (
            "select log_offset, version, payload, schema_version, table_name, stream, stream_epoch, entry_id, key, op "
            "from change_log order by log_offset"
        )
        log: dict[int, Logged] = {}
        for offset, version, payload, schema, table, stream, epoch, entry_id, key, op in self.disk.kept(
            "change_log", sql
        ):
            if offset in log:
                raise BrokenPromiseError(f"offset {offset} stands twice in the log")
            lane = None if schema < 0 else GENERIC_LANE if schema == 0 else table
            mark = VOID if lane is None else mark_of(payload)
            log[offset] = Logged(
                offset=offset, version=version, mark=mark, lane=lane, stream=stream, epoch=epoch, entry_id=entry_id, key=key or "", op=op
            )  # fmt: skip
        return log

    def held(self) -> set[tuple[str, int]]:
        """Lane and offset of every change that the sink has."""
        found = set()
        for lane, target in LANES.items():
            if target in self.sink.objects and target in self.sink.tables:
                found |= {(lane, offset) for offset in self.sink.tables[target].rows}
        return found

    def parked(self) -> list[tuple[str, int, int, str, str]]:
        """Lane, first and last offset, reason and status of what is open or discarded."""
        sql = (
            "select table_name, first_offset, last_offset, reason, status from failed_syncs where status <> 'resolved'"
        )
        return self.disk.kept("failed_syncs", sql)

    def rejected(self) -> list[int]:
        return [mark_of(raw) for (raw,) in self.disk.kept("rejected_entries", "select raw from rejected_entries")]

    # ── after every step ──

    def check(self, checkpoint: int | None = None) -> None:
        """``checkpoint`` is what the service says of the pipeline's, where it says anything."""
        if self._commits != self.disk.commits:
            self._commits = self.disk.commits
            self._check_log()
        elif self._changed == self.sink.changed:
            return
        self._changed = self.sink.changed
        self._check_sink()
        self._check_checkpoints(checkpoint)

    def _check_log(self) -> None:
        self.log = self.read_log()
        if list(self.log) != list(range(1, len(self.log) + 1)):
            raise BrokenPromiseError(f"the log has a hole: {list(self.log)}")
        marks: dict[int, int] = {}
        for row in self.log.values():
            meant = self.meant.setdefault(row.offset, (row.version, row.mark))
            if meant != (row.version, row.mark):
                self._means_another(row, meant)
            if row.mark != VOID and row.mark in marks:
                raise BrokenPromiseError(
                    f"{self.written[row.mark]} is logged twice, at {marks[row.mark]} and {row.offset}"
                )
            marks[row.mark] = row.offset
        rejected = [mark for mark in self.rejected() if mark in marks and mark != VOID]
        if rejected:
            raise BrokenPromiseError(f"logged and rejected: {[self.written[mark] for mark in rejected]}")

    def _means_another(self, row: Logged, meant: tuple[int, int]) -> None:
        if row.offset in self.doubtful and row.mark == VOID:
            self.once.setdefault(row.offset, set()).add(meant)
            self.meant[row.offset] = (row.version, VOID)  # nobody holds it any more
        elif row.offset not in self.doubtful or (row.version, row.mark) != meant:
            was = self.written.get(meant[1], "void")
            raise BrokenPromiseError(f"offset {row.offset} meant {was} (version {meant[0]}), and now {row}")

    def _check_sink(self) -> None:
        for lane, target in LANES.items():
            table = self.sink.tables.get(target)
            for offset, rows in table.rows.items() if table else ():
                sends = [row.send for row in rows]
                if len(set(sends)) < len(sends) and not self.tokens_forgotten:
                    raise BrokenPromiseError(f"{lane} {offset} stands twice under one send: {sends}")
                for row in rows:
                    sent = (row.change["version"], mark_of(row.change["payload"]))
                    meant = self.meant.get(offset)
                    if meant is not None and meant[1] != VOID and sent != meant:
                        raise BrokenPromiseError(f"{lane} {offset} in ClickHouse is {sent}, in the log it was {meant}")
        self.excused -= self.held()

    def _check_checkpoints(self, checkpoint: int | None) -> None:
        held, parked = self.held(), self.parked()
        stored = dict(self.disk.kept("checkpoints", "select table_name, log_offset from checkpoints"))
        for row in self.log.values():
            if row.lane is None:
                continue
            reached = max(stored.get(row.lane, 0), checkpoint or 0)
            there = (row.lane, row.offset) in held or (row.lane, row.offset) in self.excused
            if row.offset <= reached and not there:
                excused = any(lane == row.lane and first <= row.offset <= last for lane, first, last, *_ in parked)
                if not excused:
                    raise BrokenPromiseError(
                        f"the checkpoint of {row.lane} stands at {reached}, and offset {row.offset} is neither in ClickHouse nor parked"
                    )
        for lane, before in self.checkpoints.items():
            if stored.get(lane, 0) < before and not (self.sink_returned or self.log_returned):
                raise BrokenPromiseError(f"the checkpoint of {lane} went back from {before} to {stored.get(lane)}")
        self.checkpoints = stored

    # ── at the end ──

    def check_end(self) -> None:
        self._commits = self._changed = -1
        self.check()
        self._all_that_is_read_is_kept()
        self._losses_are_accounted()
        self._order_is_kept()
        self._sink_equals_log()
        self._state_equals_fold()
        self._ledger_is_whole()

    def in_redis(self) -> dict[int, str]:
        """The marks that Redis holds, and the streams they stand in."""
        found = {}
        for name in ("trades", "orders"):
            stream = self.redis.stream(name)
            for fields in stream.entries.values() if stream else ():
                found[mark_of(b" ".join(fields))] = name
        return found

    def kept(self) -> set[int]:
        return {row.mark for row in self.log.values()} | set(self.rejected())

    def _all_that_is_read_is_kept(self) -> None:
        kept, rejected = self.kept(), self.rejected()
        missing = [self.written[mark] for mark in self.in_redis() if mark not in kept]
        if missing:
            raise BrokenPromiseError(f"neither logged nor rejected, and Redis has them: {missing}")
        twice = {mark for mark in rejected if rejected.count(mark) > 1}
        if twice:
            raise BrokenPromiseError(f"rejected twice: {[self.written[mark] for mark in twice]}")

    def _losses_are_accounted(self) -> None:
        kept, there = self.kept(), self.in_redis()
        gaps = self.disk.rows("select stream, entries_lost from stream_gaps")
        for stream in ("trades", "orders"):
            lost = [
                w for w in self.written.values() if w.stream == stream and w.mark not in kept and w.mark not in there
            ]
            known = [w for w in lost if w.mark not in self.unknowable]
            numbers = [number for name, number in gaps if name == stream]
            if known and not numbers:
                raise BrokenPromiseError(f"{stream} lost entries, and no gap says so: {known}")
            if numbers and stream not in self.thinned | self.histories and not self.log_returned:
                raise BrokenPromiseError(f"{stream} lost nothing, and has gaps: {numbers}")
            if stream in self.histories or self.log_returned or None in numbers:
                continue
            if not len(known) <= sum(numbers) <= len(lost):
                raise BrokenPromiseError(f"{stream} lost {len(lost)} entries, its gaps say {numbers}: {lost}")

    def _order_is_kept(self) -> None:
        """Within one epoch of a stream a key's changes stand in the order of their entries."""
        last: dict[tuple[str, int, str], tuple[int, int]] = {}
        for row in self.log.values():
            if row.lane is not None:
                place, here = (row.stream, row.epoch, row.key), entry_order(row.entry_id)
                if last.get(place, (0, 0)) >= here:
                    raise BrokenPromiseError(f"out of order in its stream: {row}")
                last[place] = here

    def _undelivered(self) -> set[tuple[str, int]]:
        return {(lane, offset) for lane, first, last, *_ in self.parked() for offset in range(first, last + 1)}

    def _sink_equals_log(self) -> None:
        parked = self._undelivered()
        wanted = {(row.lane, row.offset) for row in self.log.values() if row.lane is not None}
        held = self.held()
        if missing := sorted(wanted - held - parked, key=str):
            raise BrokenPromiseError(f"logged, healed, and not in ClickHouse: {missing}")
        if extra := sorted(held - wanted, key=str):
            raise BrokenPromiseError(f"in ClickHouse, and not in the log: {extra}")
        for lane, target in LANES.items():
            for row in self.sink.tables[target].final() if target in self.sink.tables else ():
                logged = self.log[row.offset]
                if (row.change["version"], mark_of(row.change["payload"])) != (logged.version, logged.mark):
                    raise BrokenPromiseError(f"{lane} {row.offset}: {row.change} in ClickHouse, {logged} in the log")

    def _state_equals_fold(self) -> None:
        held = self.held()
        newest: dict[str, Logged] = {}
        for row in self.log.values():
            if row.lane == "orders" and ("orders", row.offset) in held:
                newest[row.key] = row if row.key not in newest else max(newest[row.key], row, key=lambda r: r.version)
        table = self.sink.tables.get(LANES["orders"])
        state = {k: (c["version"], c["op"], mark_of(c["payload"])) for k, c in (table.state if table else {}).items()}
        fold = {key: (row.version, row.op, row.mark) for key, row in newest.items()}
        if state != fold:
            raise BrokenPromiseError(f"the state of orders is {state}, its changes fold to {fold}")

    def _ledger_is_whole(self) -> None:
        for lane in LANES:
            end, rows = 0, sorted(k[2:] for k in self.sink.ledger if k[1] == lane)
            for first, last in rows:
                if first > end + 1:
                    raise BrokenPromiseError(f"the ledger of {lane} has a hole: {rows}")
                end = max(end, last)

    @property
    def doubled(self) -> int:
        """Physical rows beyond the first of their offset."""
        return sum(len(rows) - 1 for table in self.sink.tables.values() for rows in table.rows.values())

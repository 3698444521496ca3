"""The sink went back: restored from an older copy, truncated, dropped. What it does not hold any more is sent again.

Guarantees: a batch stays delivered only while the ledger records it and the rows are there; one that is there and not
recorded is recorded again; one that is not is sent again from the log; offsets that the log no longer holds either
become open failed_syncs rows with reason *lost*, never a silent rewind. Call while nothing of this pipeline is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

import structlog
from attrs import define, evolve, field, frozen

from replicator.database import Session, now, statement
from replicator.lanes import Lane
from replicator.ledger import Ledger, NewBatch
from replicator.model import NOTHING, Batch, Checksum, OffsetRange, version_of
from replicator.sink import LedgerRow
from replicator.standing import LaneStanding, SinkStanding

DOUBT = timedelta(hours=1)
"""What a restarted ClickHouse may have forgotten: anything delivered in the hour before the last insert."""
EXPIRY_SLACK = timedelta(hours=1)
"""Rows so near to the end of their time may go while they are asked for."""
BATCHES_PER_QUESTION, ROWS_PER_QUESTION = 1_000, 1_000_000
PRUNED = "the sink went back, and retention has removed these changes from the log"
PART_AGAIN = "the sink went back: what it had of a batch that is parked in part is sent again"

log = structlog.get_logger(__name__)
T = TypeVar("T")


@frozen(kw_only=True)
class Delivered:
    """A delivered batch, whether the ledger in the sink records it, and the ranges of it that are parked."""

    batch: Batch
    delivered_at: datetime
    recorded: bool
    parked: tuple[OffsetRange, ...] = ()
    refused: tuple[OffsetRange, ...] = ()
    """Those of them that are not parked for an outage: the ledger says so."""

    @property
    def not_parked(self) -> list[OffsetRange]:
        """What is left of the batch between its parked ranges."""
        left, first = [], self.batch.offsets.first
        for each in self.parked:
            if first < each.first:
                left.append(OffsetRange(first=first, last=each.first - 1))
            first = max(first, each.last + 1)
        return left if first > self.batch.offsets.last else [*left, evolve(self.batch.offsets, first=first)]


@define
class Taken:
    """What was found about one lane: batches to record again, to send again, and what of them stands nowhere."""

    recorded: list[Batch] = field(factory=list)
    again: list[Batch] = field(factory=list)
    lost: list[Batch] = field(factory=list)
    rest: list[NewBatch] = field(factory=list)
    """What the log still holds of a batch that it has pruned in part."""
    parts: list[Batch] = field(factory=list)
    """What is sent again, as a redrive, of a batch that is parked for the rest: its checkpoint need not wait for it."""
    unrecorded: list[tuple[Batch, str]] = field(factory=list)
    """What the ledger does not say, or not all of, about a batch that is parked in whole or in part; with its status."""


@define
class SinkReturn:
    """Compares what this log has delivered with what the sink holds, and takes back what it does not.

    ``ledger_row`` makes the ledger's row of a batch under a status; ``prepare`` reads a range of the log anew;
    ``holds`` asks whether the sink has a batch, in the log table and in the current rows;
    ``ttl``: how long the sink keeps a row; where that is not for ever, rows are not counted, and what may have expired
    is taken to be there.
    """

    session: Session
    ledger: Ledger
    sink: SinkStanding
    lane: Callable[[str, int], Lane]
    ledger_row: Callable[[Batch, str], LedgerRow]
    prepare: Callable[[Lane, OffsetRange], NewBatch]
    holds: Callable[[Lane, Batch], bool]
    ttl: timedelta | None = None

    def suspects(self) -> list[str]:
        """Lanes where the sink holds less than was delivered. Only reads; may run beside delivery."""
        ends = self._delivered_ends()
        parked = self._all_parked()  # before the sink is asked: one may be delivered at this moment
        standings = self.sink.lanes()
        return [
            lane
            for lane, end in ends.items()
            if self._short(self._standing(standings, lane), end, parked.get(lane, ()))
        ]

    def take_back(self, *, restarted: bool, timeline: int) -> dict[str, Taken]:
        """Settle every lane. ``restarted``: ClickHouse was, so what it last took is compared row by row.

        No send of this ``timeline`` that the sink has seen is used again: the log may be a copy from before it.
        """
        parked, standings, found = self._all_parked(), self.sink.lanes(), {}
        sends = [standing.newest_send - version_of(timeline, 0) for standing in standings.values()]
        self.ledger.pass_sends(self.session, max((seq for seq in sends if seq < version_of(1, 0)), default=0))
        for lane, end in self._delivered_ends().items():
            standing = self._standing(standings, lane)
            short = self._short(standing, end, parked.get(lane, ()))
            if short or restarted:
                taken = self._examine(standing, short=short, restarted=restarted)
                self._settle(lane, taken)
                if taken.again or taken.lost or taken.parts:
                    found[lane] = taken
        return found

    def _delivered_ends(self) -> Mapping[str, int]:
        return dict(self.session.rows(statement("sink_return/delivered_ends")))

    def _standing(self, standings: Mapping[str, LaneStanding], lane: str) -> LaneStanding:
        return standings.get(lane) or LaneStanding(lane=lane, target=self.lane(lane, 0).target)

    def _short(self, standing: LaneStanding, end: int, parked: Sequence[OffsetRange]) -> bool:
        too_few = self.ttl is None and standing.rows_held < standing.rows_recorded
        return too_few or (standing.agreed < end and self._agreed(standing, parked) < end)

    def _agreed(self, standing: LaneStanding, parked: Sequence[OffsetRange]) -> int:
        """The end of the ledger's union with what is parked: in an outage that has no row in the ledger yet."""
        recorded = self.sink.recorded(standing.lane, after=standing.agreed) if parked else []
        return _union_end(standing.agreed, [(each.first, each.last) for each in (*recorded, *parked)])

    def _all_parked(self) -> dict[str, list[OffsetRange]]:
        """By lane the ranges of which nothing is there, and that is known."""
        found: dict[str, list[OffsetRange]] = {}
        sql = f"select table_name, first_offset, last_offset from {self.ledger.failed_table} where status <> 'resolved'"
        for lane, first, last in self.session.rows(sql):
            found.setdefault(lane, []).append(OffsetRange(first=first, last=last))
        return found

    # ── what is there ──

    def _examine(self, standing: LaneStanding, *, short: bool, restarted: bool) -> Taken:
        """Each batch that may be missing, in the order of offsets."""
        taken, oldest = Taken(), self._oldest_logged()
        recorded = [(row.first, row.last) for row in self.sink.recorded(standing.lane)]
        known = self._delivered(standing.lane, recorded)
        newest = max((each.delivered_at for each in known), default=now())
        batches = [each for each in known if not each.parked]
        missing = self._missing(standing, batches) if short and self.ttl is None else set()
        in_doubt = [e for e in batches if not e.recorded or (restarted and e.delivered_at >= newest - DOUBT)]
        began = time.monotonic()
        missing |= self._not_held([each.batch for each in in_doubt if each.batch.batch_id not in missing])
        took = round(time.monotonic() - began, 1)
        log.info("sink_compared", lane=standing.lane, batches=len(in_doubt), missing=len(missing), seconds=took)
        for each in batches:
            batch = each.batch
            if batch.batch_id in missing:
                self._take(taken, batch, oldest)
            elif not each.recorded:
                taken.recorded.append(batch)
        for each in known:
            if each.parked and (short or each.delivered_at >= newest - DOUBT):
                self._examine_parked(taken, each, oldest, recorded)
        return taken

    def _examine_parked(
        self, taken: Taken, delivered: Delivered, oldest: int, recorded: Sequence[tuple[int, int]]
    ) -> None:
        """Of a batch that is parked the rest must be there, and the ledger must know of both."""
        held = []
        for part in self._parts(delivered, oldest):
            (held if self._holds(part) else taken.parts).append(part)
        parked = [evolve(delivered.batch, offsets=offsets) for offsets in delivered.refused]
        for part, status in [*((part, "delivered") for part in held), *((part, "parked") for part in parked)]:
            if _union_end(part.offsets.first - 1, recorded) < part.offsets.last:
                taken.unrecorded.append((part, status))

    def _parts(self, delivered: Delivered, oldest: int) -> Iterator[Batch]:
        """A batch that is parked in part, without that, and without what the log has pruned."""
        batch = delivered.batch
        for offsets in delivered.not_parked:
            if offsets.first >= oldest:
                part = self.prepare(self.lane(batch.lane, batch.schema_version), offsets)
                if part.row_count:
                    yield evolve(batch, offsets=offsets, row_count=part.row_count, checksum=part.checksum)

    def _delivered(self, lane: str, recorded: Sequence[tuple[int, int]]) -> list[Delivered]:
        parked, whole = self._parked(lane), set(recorded)
        return [
            Delivered(
                batch=_batch(row),
                delivered_at=row[-1],
                recorded=(row[2], row[3]) in whole or _union_end(row[2] - 1, recorded) >= row[3],
                parked=tuple(offsets for offsets, _ in parked.get(row[0], ())),
                refused=tuple(offsets for offsets, reason in parked.get(row[0], ()) if reason != "outage"),
            )
            for row in self.session.rows(statement("sink_return/delivered"), [lane])
        ]

    def _parked(self, lane: str) -> dict[str, list[tuple[OffsetRange, str]]]:
        """By batch the ranges of which nothing is there, and that is known, with their reasons."""
        found: dict[str, list[tuple[OffsetRange, str]]] = {}
        sql = statement("sink_return/parked", self.ledger.failed_table)
        for batch_id, first, last, reason in self.session.rows(sql, [lane]):
            found.setdefault(batch_id, []).append((OffsetRange(first=first, last=last), reason))
        return found

    def _missing(self, standing: LaneStanding, batches: Sequence[Delivered]) -> set[str]:
        """Batches of which the table holds fewer rows than were sent."""
        missing = set()
        for some in _slices([each.batch for each in batches]):
            held = self.sink.rows_held(standing, [batch.offsets for batch in some])
            missing |= {batch.batch_id for batch in some if held.get(batch.offsets.first, 0) < batch.row_count}
        return missing

    def _not_held(self, batches: Sequence[Batch]) -> set[str]:
        """Which of these are not there as they were sent. Neighbours are asked about together, then by halves."""
        missing: set[str] = set()
        left = list(_runs([batch for batch in batches if not self._is_past(batch)]))
        while left:
            run = left.pop()
            if self.holds(self.lane(run[0].lane, run[0].schema_version), _as_one(run)):
                continue
            if len(run) == 1:
                missing.add(run[0].batch_id)
            else:
                left += [run[: len(run) // 2], run[len(run) // 2 :]]
        return missing

    def _holds(self, batch: Batch) -> bool:
        return not self._not_held([batch])

    def _is_past(self, batch: Batch) -> bool:
        lane = self.lane(batch.lane, batch.schema_version)
        return self.ttl is not None and self._may_have_expired(lane, batch, self.ttl)

    def _may_have_expired(self, lane: Lane, batch: Batch, ttl: timedelta) -> bool:
        """Whether any of its rows was logged so long ago; of what the log has pruned, when it was frozen must tell."""
        sql = f"select count(*), min(logged_at) from change_log where log_offset between ? and ? and {lane.where}"
        rows, logged = self.session.row(sql, [batch.offsets.first, batch.offsets.last]) or (0, None)
        if rows < batch.row_count:
            row = self.session.row("select frozen_at from sync_batches where batch_id = ?", [batch.batch_id])
            logged = row[0] if row else None
        return logged is None or logged < now() - ttl + EXPIRY_SLACK

    def _oldest_logged(self) -> int:
        row = self.session.row("select coalesce(min(log_offset), 1) from change_log")
        return int(row[0]) if row else 1

    def _take(self, taken: Taken, batch: Batch, oldest: int) -> None:
        """Send a batch again; of one that the log has pruned, whole or in part, that part is lost."""
        if batch.offsets.first >= oldest:
            batch = self._without_voids(batch)
            (taken.again if batch.row_count else taken.recorded).append(batch)
            return
        rest = None
        if batch.offsets.last >= oldest:
            kept = OffsetRange(first=oldest, last=batch.offsets.last)
            rest = self.prepare(self.lane(batch.lane, batch.schema_version), kept)
            taken.rest.append(rest)
        gone = OffsetRange(first=batch.offsets.first, last=min(batch.offsets.last, oldest - 1))
        rows = batch.row_count - (rest.row_count if rest else 0)
        taken.lost.append(evolve(batch, offsets=gone, row_count=rows, checksum=NOTHING))

    def _without_voids(self, batch: Batch) -> Batch:
        """The batch as the log has it since it went back itself: less what nobody held any more."""
        row = self.session.row(
            "select count(*) from change_log where log_offset between ? and ? and schema_version < 0",
            [batch.offsets.first, batch.offsets.last],
        )
        if not (row and row[0]):
            return batch
        now_logged = self.prepare(self.lane(batch.lane, batch.schema_version), batch.offsets)
        return evolve(batch, row_count=now_logged.row_count, checksum=now_logged.checksum)

    # ── taking back ──

    def _settle(self, lane: str, taken: Taken) -> None:
        """First the ledger in the sink, which then says less than is there, never more."""
        if taken.again or taken.lost:
            self.sink.forget(lane, [batch.offsets for batch in taken.again])
            self.sink.forget(lane, [batch.offsets for batch in taken.lost])
            for rest, batch in zip(taken.rest, taken.lost[-1:], strict=False):
                self.sink.forget(lane, [OffsetRange(first=batch.offsets.first, last=rest.offsets.last)])
        if anew := [*taken.parts, *(part for part, _ in taken.unrecorded)]:
            whole = [(part.offsets.first, part.offsets.last) for part in anew]
            stale = [r for r in self.sink.recorded(lane) if any(a <= r.first and r.last <= b for a, b in whole)]
            self.sink.forget(lane, [OffsetRange(first=row.first, last=row.last) for row in stale])
        rows = [self.ledger_row(batch, "delivered") for batch in taken.recorded]
        rows += [self.ledger_row(evolve(batch, row_count=0), "lost") for batch in taken.lost]
        rows += [self.ledger_row(part, status) for part, status in taken.unrecorded]
        for some in _slices(rows):
            self.sink.sink.record(some)
        for batch in taken.recorded:
            self.session.execute(
                "update sync_batches set row_count = $rows, checksum = $checksum "
                "where batch_id = $id and (row_count, checksum) <> ($rows, $checksum)",
                {"rows": batch.row_count, "checksum": str(batch.checksum), "id": batch.batch_id},
            )
        found = (*taken.again, *taken.lost, *taken.parts)
        if found:
            self._take_back(lane, taken)
            first, again = str(min(batch.offsets.first for batch in found)), len(taken.again) + len(taken.parts)
            log.error("sink_went_back", lane=lane, first=first, again=again, lost=len(taken.lost))

    def _take_back(self, lane: str, taken: Taken) -> None:
        """One transaction: what is sent again is undelivered, what is lost is said so, the checkpoint stands before both."""
        at = now()
        if taken.rest:  # before the batch it comes from shrinks: after a crash between the two it is found again
            self.ledger.advance(self.session, delivered=(), idle={}, frozen=taken.rest)
        with self.session.transaction():
            for batch in taken.again:
                self.session.execute(
                    "update sync_batches set delivered_at = null, row_count = ?, checksum = ? where batch_id = ?",
                    [batch.row_count, str(batch.checksum), batch.batch_id],
                )
            for part in taken.parts:
                self._park(part, at, "outage", PART_AGAIN)
            for batch in taken.lost:
                self._lose(batch, at)
            if firsts := [batch.offsets.first for batch in (*taken.again, *taken.lost)]:
                self.session.execute(
                    "update checkpoints set log_offset = least(log_offset, ?), updated_at = ? where table_name = ?",
                    [min(firsts) - 1, at, lane],
                )
            effect = f"{len(taken.again) + len(taken.parts)} batches sent again, {len(taken.lost)} lost"
            self.session.execute(
                "insert into operator_actions (asked_at, actor, action, subject, effect) values (?, 'replicator', 'rewind', ?, ?)",
                [at, f"table:{lane}", effect],
            )

    def _park(self, batch: Batch, at: datetime, reason: str, message: str) -> None:
        row = {"lane": batch.lane, "first": batch.offsets.first, "last": batch.offsets.last, "rows": batch.row_count}
        sql = statement("sink_return/park", self.ledger.failed_table)
        self.session.execute(sql, {**row, "reason": reason, "message": message, "at": at})

    def _lose(self, batch: Batch, at: datetime) -> None:
        self._park(batch, at, "lost", PRUNED)
        self.session.execute(
            "update sync_batches set last_offset = ?, row_count = 0, checksum = ? where batch_id = ?",
            [batch.offsets.last, str(NOTHING), batch.batch_id],
        )


def _batch(row: Sequence[object]) -> Batch:
    batch_id, lane, first, last, rows, checksum, schema_version, send_seq, attempt = row[:9]
    return Batch(
        batch_id=str(batch_id),
        lane=str(lane),
        offsets=OffsetRange(first=int(str(first)), last=int(str(last))),
        row_count=int(str(rows)),
        checksum=Checksum.parse(str(checksum)) if checksum else NOTHING,
        schema_version=int(str(schema_version)),
        send_seq=int(str(send_seq)),
        attempt=int(str(attempt)),
    )


def _union_end(end: int, ranges: Iterable[tuple[int, int]]) -> int:
    """Where the union of ranges, begun at ``end``, has its first gap."""
    for first, last in sorted(ranges):
        if first > end + 1:
            break
        end = max(end, last)
    return end


def _runs(batches: Sequence[Batch]) -> Iterator[Sequence[Batch]]:
    """Neighbours of one version, so many that one question about all of them is not too large."""
    run: list[Batch] = []
    rows = 0
    for batch in batches:
        full = len(run) >= BATCHES_PER_QUESTION or rows + batch.row_count > ROWS_PER_QUESTION
        if run and (full or batch.schema_version != run[0].schema_version):
            yield run
            run, rows = [], 0
        run.append(batch)
        rows += batch.row_count
    if run:
        yield run


def _as_one(run: Sequence[Batch]) -> Batch:
    offsets = OffsetRange(first=run[0].offsets.first, last=run[-1].offsets.last)
    checksum = sum((batch.checksum for batch in run), NOTHING)
    return evolve(run[0], offsets=offsets, row_count=checksum.rows, checksum=checksum)


def _slices(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), BATCHES_PER_QUESTION):
        yield values[start : start + BATCHES_PER_QUESTION]

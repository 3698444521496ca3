"""What was delivered and what was not, in DuckDB: checkpoints, sync_batches, failed_syncs, rejected_entries.

Guarantees: every step is one transaction, so that promise 3 holds at every instant: each offset at or below a
table's checkpoint was delivered, or stands in ``failed_syncs``. Never talks to ClickHouse.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from attrs import define, evolve, field, frozen

from replicator.database import Database, Session, now, quote, statement
from replicator.model import Batch, Checksum, FailedSync, Failure, OffsetRange, ParkReason

_DELIVERED = "update sync_batches set delivered_at = ?, attempt = ? where batch_id = ?"


@frozen(kw_only=True)
class NewBatch:
    """A range about to be frozen."""

    lane: str
    offsets: OffsetRange
    row_count: int
    checksum: Checksum
    schema_version: int


@frozen(kw_only=True)
class LanePosition:
    """``batched`` is where the lane's last batch ends, ``checkpoint`` how far it is known to have nothing undelivered."""

    batched: int = 0
    checkpoint: int = 0


@define
class Ledger:
    """The delivery records. One thread writes them; any may read, and take a send number."""

    database: Database
    failed_table: str = "failed_syncs"
    send_seq: int = field(default=0)
    _numbering: threading.Lock = field(factory=threading.Lock)
    """Held from the choice of a send number until it is durable."""

    @classmethod
    def open(cls, database: Database, failed_table: str = "failed_syncs") -> Ledger:
        """Attach to the file's records, under the configured name of ``failed_syncs``."""
        session = database.session()
        if failed_table != "failed_syncs":
            session.execute(f"create table if not exists {quote(failed_table)} as from failed_syncs limit 0")
            session.execute(f"alter table {quote(failed_table)} add column if not exists error_column varchar")
        row = session.row("select coalesce(max(value::bigint), 0) from meta where key = 'send_seq'")
        session.close()
        return cls(database=database, failed_table=quote(failed_table), send_seq=row[0] if row else 0)

    def refresh(self, session: Session) -> None:
        """Ask the file what was sent last: after an error it may hold more than is remembered here."""
        with self._numbering:
            rows = session.rows("select coalesce(max(value::bigint), 0) from meta where key = 'send_seq'")
            self.send_seq = max(self.send_seq, rows[0][0])

    # ── reading ──

    def positions(self, session: Session) -> dict[str, LanePosition]:
        """Where every lane stands."""
        rows = session.rows(statement("ledger/positions"))
        return {lane: LanePosition(batched=batched, checkpoint=checkpoint) for lane, batched, checkpoint in rows}

    def undelivered(self, session: Session) -> list[Batch]:
        """Frozen batches whose delivery is not recorded, in the order of their offsets."""
        return [_batch(row) for row in session.rows(statement("ledger/undelivered"))]

    def delivered(self, session: Session, lane: str) -> list[Batch]:
        """A lane's delivered batches in the order of their offsets, less those of which nothing was left to deliver."""
        return [_batch(row[:9]) for row in session.rows(statement("sink_return/delivered"), [lane]) if row[5]]

    def open_failures(self, session: Session, lane: str | None = None) -> list[FailedSync]:
        """Open rows of failed_syncs, oldest offsets first."""
        sql = statement("ledger/open_failures", self.failed_table)
        rows = session.rows(sql, {"lane": lane})
        return [
            FailedSync(
                id=id,
                lane=name,
                offsets=OffsetRange(first=first, last=last),
                row_count=count,
                reason=ParkReason(reason),
                attempts=attempts,
                schema_version=version,
            )
            for id, name, first, last, count, reason, attempts, version in rows
        ]

    def bisected(self, session: Session) -> list[tuple[str, OffsetRange, int]]:
        """Each lane's batch that was cut last, and how many rows of it are parked."""
        rows = session.rows(statement("ledger/bisected", self.failed_table))
        return [(lane, OffsetRange(first=first, last=last), parked) for lane, first, last, parked in rows]

    # ── writing; each call is one durable step ──

    def advance(
        self, session: Session, *, delivered: Iterable[Batch], idle: Mapping[str, int], frozen: Sequence[NewBatch]
    ) -> list[Batch]:
        """Record deliveries, move checkpoints, freeze the next batches: one transaction.

        ``idle`` maps lanes without pending changes to how far that is known. Returns the frozen batches.
        """
        at = now()
        with self._numbering:
            batches = [self._numbered(new, place) for place, new in enumerate(frozen, start=1)]
            with session.transaction():
                for batch in delivered:
                    session.execute(_DELIVERED, [at, batch.attempt, batch.batch_id])
                    _move_checkpoint(session, batch.lane, batch.offsets.last, at)
                for lane, offset in idle.items():
                    _move_checkpoint(session, lane, offset, at)
                for batch in batches:
                    _insert_batch(session, batch, at)
                self._store_send_seq(session, self.send_seq + len(batches))
            self.send_seq += len(batches)
        return batches

    def renew(self, session: Session, batch: Batch) -> Batch:
        """The batch under a new send, for when the old one's outcome can no longer be known."""
        with self._numbering:
            renewed = evolve(batch, send_seq=self.send_seq + 1)
            with session.transaction():
                session.execute(
                    "update sync_batches set send_seq = ? where batch_id = ?", [renewed.send_seq, batch.batch_id]
                )
                self._store_send_seq(session, self.send_seq + 1)
            self.send_seq += 1
        return renewed

    def begin_bisection(self, session: Session, batch: Batch) -> None:
        """Remember the whole that is about to be cut: how many of its rows may be parked is counted over all its parts."""
        with session.transaction():
            _remember(session, f"bisected/{batch.lane}", f"{batch.offsets.first}-{batch.offsets.last}")

    def split(self, session: Session, batch: Batch, children: Sequence[NewBatch]) -> list[Batch]:
        """Put a rejected batch's children in its place."""
        at = now()
        with self._numbering:
            batches = [self._numbered(new, place) for place, new in enumerate(children, start=1)]
            with session.transaction():
                session.execute("delete from sync_batches where batch_id = ?", [batch.batch_id])
                for child in batches:
                    _insert_batch(session, child, at)
                self._store_send_seq(session, self.send_seq + len(batches))
            self.send_seq += len(batches)
        return batches

    def park(self, session: Session, batch: Batch, failure: Failure) -> None:
        """Record a batch in failed_syncs and let the checkpoint pass it; rejected rows are copied."""
        at = now()
        with session.transaction():
            row = [batch.lane, batch.offsets.first, batch.offsets.last, batch.row_count, failure.reason, failure.code]
            sql = statement("ledger/park", self.failed_table)
            found = session.row(sql, [*row, failure.column, failure.message, failure.attempts, at, at])
            assert found is not None
            if failure.reason is ParkReason.REJECTED:
                _copy_parked(session, found[0], batch.lane, batch.offsets)
            session.execute(_DELIVERED, [at, failure.attempts, batch.batch_id])
            _move_checkpoint(session, batch.lane, batch.offsets.last, at)

    def resolve(self, session: Session, failed: FailedSync) -> None:
        """A parked range was delivered after all. The checkpoint does not move: it has passed the range already."""
        with session.transaction():
            session.execute(
                f"update {self.failed_table} set status = 'resolved' where id = ?",
                [failed.id],
            )
            session.execute("delete from parked_changes where failed_sync_id = ?", [failed.id])

    def failed_again(self, session: Session, failed: FailedSync, failure: Failure) -> None:
        """A redrive failed: count it."""
        session.execute(
            f"update {self.failed_table} set attempts = attempts + 1, last_failed_at = ?, error_code = ?, "
            "error_column = ?, error_message = ? where id = ?",
            [now(), failure.code, failure.column, failure.message, failed.id],
        )

    def split_failed(self, session: Session, failed: FailedSync, children: Sequence[NewBatch]) -> list[FailedSync]:
        """Put two rows in the place of a parked range that was refused when it was sent again."""
        parts = []
        with session.transaction():
            for child in children:
                row = [child.offsets.first, child.offsets.last, child.row_count, failed.id]
                sql = statement("ledger/split_failed", self.failed_table)
                part_id = session.rows(sql, row)[0][0]
                parts.append(evolve(failed, id=part_id, offsets=child.offsets, row_count=child.row_count))
            session.execute(f"delete from {self.failed_table} where id = ?", [failed.id])
        return parts

    def reject_failed(self, session: Session, failed: FailedSync, failure: Failure) -> None:
        """A parked row was refused when it was sent again: it is at fault itself, and is kept."""
        with session.transaction():
            session.execute(
                f"update {self.failed_table} set reason = ?, error_code = ?, error_column = ?, error_message = ?, "
                "attempts = attempts + 1, last_failed_at = ? where id = ?",
                [ParkReason.REJECTED, failure.code, failure.column, failure.message, now(), failed.id],
            )
            session.execute("delete from parked_changes where failed_sync_id = ?", [failed.id])
            _copy_parked(session, failed.id, failed.lane, failed.offsets)

    def pass_sends(self, session: Session, send_seq: int) -> None:
        """Never hand out a number up to this one again."""
        with self._numbering:
            if send_seq > self.send_seq:
                with session.transaction():
                    self._store_send_seq(session, send_seq)
                self.send_seq = send_seq

    def next_send(self, session: Session) -> int:
        """A send_seq of its own for a redrive, a repair or a replay, durable before it is used. From any thread."""
        with self._numbering:
            with session.transaction():
                self._store_send_seq(session, self.send_seq + 1)
            self.send_seq += 1
            return self.send_seq

    def _numbered(self, new: NewBatch, place: int) -> Batch:
        return Batch(
            batch_id=uuid.uuid4().hex,
            lane=new.lane,
            offsets=new.offsets,
            row_count=new.row_count,
            checksum=new.checksum,
            schema_version=new.schema_version,
            send_seq=self.send_seq + place,
        )

    def _store_send_seq(self, session: Session, value: int) -> None:
        if value != self.send_seq:
            _remember(session, "send_seq", str(value))


def _remember(session: Session, key: str, value: str) -> None:
    session.execute("delete from meta where key = ?", [key])
    session.execute("insert into meta values (?, ?)", [key, value])


def _copy_parked(session: Session, failed_id: int, lane: str, offsets: OffsetRange) -> None:
    where = {"id": failed_id, "first": offsets.first, "last": offsets.last, "lane": lane}
    session.execute(statement("ledger/copy_parked"), where)


def _move_checkpoint(session: Session, lane: str, offset: int, at: datetime) -> None:
    """Forward only: a redrive or a late answer never moves a checkpoint back."""
    row = session.row("select log_offset from checkpoints where table_name = ?", [lane])
    if row is None:
        session.execute("insert into checkpoints values (?, ?, ?)", [lane, offset, at])
    elif row[0] < offset:
        session.execute(
            "update checkpoints set log_offset = ?, updated_at = ? where table_name = ?", [offset, at, lane]
        )


def _insert_batch(session: Session, batch: Batch, at: datetime) -> None:
    session.execute(
        "insert into sync_batches values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, null)",
        [
            batch.batch_id,
            batch.lane,
            batch.offsets.first,
            batch.offsets.last,
            batch.row_count,
            str(batch.checksum),
            batch.schema_version,
            batch.send_seq,
            batch.attempt,
            at,
        ],
    )


def _batch(row: tuple[str, str, int, int, int, str, int, int, int]) -> Batch:
    batch_id, lane, first, last, rows, checksum, schema_version, send_seq, attempt = row
    return Batch(
        batch_id=batch_id,
        lane=lane,
        offsets=OffsetRange(first=first, last=last),
        row_count=rows,
        checksum=Checksum.parse(checksum),
        schema_version=schema_version,
        send_seq=send_seq,
        attempt=attempt,
    )

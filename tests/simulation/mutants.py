"""Classic bugs, each put into the product for as long as a block lasts: the simulation has to notice every one.

A mutant names the kinds of faults under which it shows, so that few seeds are enough. Nothing of this is in the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from attrs import evolve, frozen

from replicator import witness
from replicator.changelog import ChangeLog, store_positions
from replicator.database import Session, now
from replicator.deliver_work import Outcome, Result, Worker
from replicator.errors import SinkMisshapen
from replicator.ledger import Ledger, _move_checkpoint
from replicator.model import TIMELINE_SHIFT, OffsetRange
from replicator.reconcile import Reconciler
from replicator.sink import Send
from replicator.sink_return import SinkReturn
from replicator.stream_watch import StreamWatch


@frozen(kw_only=True)
class Mutant:
    """``breaks`` says what; ``kinds`` are the faults in whose company it shows; ``plant`` replaces (owner, name, value)."""

    name: str
    breaks: str
    kinds: frozenset[str]
    plant: Callable[[], list[tuple[Any, str, Any]]]
    steps: int = 120

    @contextmanager
    def planted(self) -> Iterator[None]:
        changes = self.plant()
        before = [(owner, name, owner.__dict__[name]) for owner, name, _ in changes]
        try:
            for owner, name, value in changes:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)


MUTANTS: list[Mutant] = []


def mutant(breaks: str, *kinds: str, steps: int = 120) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(plant: Callable[[], Any]) -> Callable[[], Any]:
        name = plant.__name__.removeprefix("_").replace("_", " ")
        MUTANTS.append(Mutant(name=name, breaks=breaks, kinds=frozenset(kinds), plant=plant, steps=steps))
        return plant

    return register


@mutant("the checkpoint passes a batch when it is frozen", "sink_down")
def _checkpoint_before_send() -> Any:
    advance = Ledger.advance

    def early(self: Ledger, session: Session, **what: Any) -> Any:
        batches = advance(self, session, **what)
        for batch in batches:
            _move_checkpoint(session, batch.lane, batch.offsets.last, now())
        return batches

    return [(Ledger, "advance", early)]


@mutant("a stream's position commits before its changes do", "crash", "commit")
def _position_outside_the_transaction() -> Any:
    append = ChangeLog.append

    def apart(self: ChangeLog, session: Session, what: Any, **more: Any) -> Any:
        with session.transaction():
            store_positions(session, what.positions, now())
        return append(self, session, evolve(what, positions=()), **more)

    return [(ChangeLog, "append", apart)]


@mutant("a redrive gives its changes a higher version", "sink_down", "operator", steps=400)
def _version_raised_by_a_replay() -> Any:
    send = Worker._send

    def raised(self: Worker, attempt: Any, prepared: Any) -> Any:
        if attempt.batch.batch_id.startswith("redrive"):
            name = "_version" if "_version" in prepared.table.column_names else "version"
            place = prepared.table.schema.get_field_index(name)
            higher = [version + (1 << TIMELINE_SHIFT) for version in prepared.table[name].to_pylist()]
            prepared = evolve(prepared, table=prepared.table.set_column(place, name, pa.array(higher, pa.uint64())))
        return send(self, attempt, prepared)

    return [(Worker, "_send", raised)]


@mutant("a resolved redrive sets its table's checkpoint", "poison", "sink_down", "operator", steps=200)
def _redrive_moving_the_checkpoint() -> Any:
    resolve = Ledger.resolve

    def moving(self: Ledger, session: Session, failed: Any) -> None:
        resolve(self, session, failed)
        where = [failed.offsets.last, failed.lane]
        session.execute("update checkpoints set log_offset = ? where table_name = ?", where)

    return [(Ledger, "resolve", moving)]


@mutant("both halves of a cut batch are sent under its token", "poison")
def _token_reused_after_a_cut() -> Any:
    split = Ledger.split

    def under_one_send(self: Ledger, session: Session, batch: Any, children: Any) -> Any:
        return [evolve(child, send_seq=batch.send_seq) for child in split(self, session, batch, children)]

    token = property(lambda self: f"{self.pipeline}/{self.target}/{self.send}")
    return [(Ledger, "split", under_one_send), (Send, "token", token)]


@mutant("a batch is sent again as two", "view", steps=200)
def _resend_with_another_split() -> Any:
    def in_two(self: Worker, attempt: Any, prepared: Any) -> Any:
        send = self.send_of(attempt.lane, attempt.batch, attempt.number)
        column = pa.repeat(pa.scalar(send.send, pa.uint64()), prepared.table.num_rows)
        table = prepared.table.append_column("_send", column)
        middle = table.num_rows // 2 if attempt.number > 1 else 0
        for part in (table.slice(0, middle), table.slice(middle)):
            if part.num_rows:
                offsets = part[attempt.lane.offset_column].to_pylist()
                self.sink.insert(evolve(send, offsets=OffsetRange(first=offsets[0], last=offsets[-1])), part)
        return Outcome(result=Result.DELIVERED)

    return [(Worker, "_send", in_two)]


@mutant("rows in the log table are taken for a whole insert", "sink_down", steps=200)
def _accept_from_the_log_table_alone() -> Any:
    def holds(self: Worker, lane: Any, batch: Any) -> bool:
        try:
            return self.sink.held(lane, self.pipeline, batch.offsets) == batch.checksum
        except SinkMisshapen:
            return False

    return [(Worker, "holds", holds)]


@mutant("the log begins without asking who has seen more of it", "log_copy", "crash")
def _offsets_reused_after_the_log_went_back() -> Any:
    return [(Reconciler, "check_log", lambda self: self._log_checked.set())]


@mutant("after a failed commit the log is not asked where it ends", "commit")
def _doubtful_commit_taken_for_lost() -> Any:
    return [(ChangeLog, "reread", lambda self, session: None)]


@mutant("a sink that went back is not noticed", "sink_truncated", "sink_copy")
def _sink_never_compared() -> Any:
    return [(SinkReturn, "take_back", lambda self, *, restarted: {})]


@mutant("a parked range gets no row in the ledger", "poison")
def _parked_range_left_out_of_the_ledger() -> Any:
    bisect = Worker.bisect
    return [(Worker, "bisect", lambda self, what: bisect(self, evolve(what, parked_row=None)))]


@mutant("what is read again is logged again", "rollback")
def _reread_without_skipping() -> Any:
    return [(StreamWatch, "unlogged", lambda self, read, admitted: admitted)]


@mutant("what was added is not compared with what was read", "trim", "xdel")
def _losses_not_counted() -> Any:
    return [(witness, "unread_entries", lambda seen: 0)]

"""Replay: send logged changes again that ClickHouse has been given before, beside the live stream.

Guarantees: each goes out under a new send with the version it was logged with, so that the sink takes it and no stale
row wins; nothing that is parked, discarded or not yet delivered is sent; after a kill a replay goes on where it was.
Never touches a checkpoint, a batch's record or the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from attrs import define, evolve, frozen

from replicator.controls import record_action
from replicator.database import Session, now, statement
from replicator.errors import SinkMisshapen, SinkUnavailable, UsageError
from replicator.failpoints import failpoint
from replicator.lanes import Lane
from replicator.model import OffsetRange
from replicator.pieces import without
from replicator.replay_plan import Planner, ReplayPlan, ReplayRequest, TablePlan
from replicator.resend import Ready, Resender

log = structlog.get_logger(__name__)


@frozen
class Unfinished:
    """One table's part of a replay that a kill, a cancel or an outage has cut short."""

    replay_id: int
    table: str
    last: int
    sent_through: int
    rate: float | None


@define
class Replayer:
    """Replays with a session of its own. ``rest`` waits between two sends and raises where the replay is to end."""

    session: Session
    planner: Planner
    resender: Resender
    prepare: Callable[[Lane, OffsetRange, int], Ready]
    """Reads a range, or as much of its beginning as memory has room for."""
    rest: Callable[[float], None]
    sent: Callable[[str, int], None]
    """Told of each insert: the table and its rows."""

    def replay(self, request: ReplayRequest, plan: ReplayPlan, *, actor: str) -> dict[str, Any]:
        """Send what was planned. Raises SinkMisshapen where that is not safe, and what stops it on the way."""
        if plan.problems:
            raise SinkMisshapen(
                f"this replay is not safe: {'; '.join(plan.problems)}", hint="see `replicator replay --dry-run`"
            )
        replay_id = self._begin(request, plan, actor)
        return self._run(replay_id, plan.tables, request.rate, actor)

    def resume(self, *, actor: str) -> dict[str, Any]:
        """Go on with the newest replay that has not come to its end. Raises UsageError where there is none."""
        parts = [Unfinished(*row) for row in self.session.rows(statement("replay/unfinished"))]
        if not parts:
            raise UsageError("there is no replay to go on with", code="not_found", hint="start one with --from")
        tables: list[TablePlan] = []
        for part in parts:
            rest = ReplayRequest(first=str(part.sent_through + 1), last=str(part.last), tables=(part.table,))
            tables += self.planner.plan(rest).tables if part.sent_through < part.last else ()
        plan = ReplayPlan(tables=tuple(tables))
        if plan.problems:
            raise SinkMisshapen(f"the rest of the replay is not safe: {'; '.join(plan.problems)}")
        return self._run(parts[0].replay_id, plan.tables, parts[0].rate, actor)

    def _begin(self, request: ReplayRequest, plan: ReplayPlan, actor: str) -> int:
        with self.session.transaction():
            self.session.execute("update replays set status = 'abandoned' where status = 'open'")
            [(replay_id,)] = self.session.rows("select nextval('replays_id')")
            for table in plan.tables:
                row = {"id": replay_id, "table": table.table, "first": table.first, "last": table.last}
                row |= {"rows": table.rows, "rate": request.rate, "actor": actor, "at": now()}
                self.session.execute(statement("replay/begin"), row)
            subject = ", ".join(request.tables) or "all tables"
            span = f"from {request.first} to {request.last or 'the checkpoint'}"
            record_action(self.session, actor, "replay", subject, f"replay {replay_id}: {plan.rows} rows {span}")
        return int(replay_id)

    # ── sending ──

    def _run(self, replay_id: int, tables: Sequence[TablePlan], rate: float | None, actor: str) -> dict[str, Any]:
        rows, started = 0, time.monotonic()
        ended = "stopped"
        try:
            for table in tables:
                for piece in table.pieces:
                    for offsets in without(piece.offsets, table.known):
                        rows += self._send_range(replay_id, table.table, piece.schema_version, offsets, rate)
                    self._move(replay_id, table.table, piece.offsets.last, 0)
                self._move(replay_id, table.table, table.last, 0)
            self.session.execute("update replays set status = 'done' where id = ?", [replay_id])
            ended = "done"
        finally:
            record_action(self.session, actor, "replay", f"replay {replay_id}", f"{ended}: {rows} rows sent")
        log.info("replayed", replay=replay_id, rows=rows)
        return {"replay": replay_id, "sent_rows": rows, "seconds": round(time.monotonic() - started, 3)}

    def _send_range(self, replay_id: int, table: str, version: int, offsets: OffsetRange, rate: float | None) -> int:
        lane, rows = self.planner.catalog.lane(table, version), 0
        while True:
            began = time.monotonic()
            ready = self.prepare(lane, offsets, version)
            if ready.table.num_rows:
                self._send(lane, ready)
                failpoint("replay.after_send")
                self._move(replay_id, table, ready.offsets.last, ready.table.num_rows)
                rows += ready.table.num_rows
                self.sent(table, ready.table.num_rows)
            self.rest(max(0.0, ready.table.num_rows / rate - (time.monotonic() - began)) if rate else 0.0)
            if ready.offsets.last >= offsets.last:
                return rows
            offsets = evolve(offsets, first=ready.offsets.last + 1)

    def _send(self, lane: Lane, ready: Ready) -> None:
        try:
            self.planner.catalog.ensure(self.planner.sink, lane)
            self.resender.send(lane, ready)
        except SinkUnavailable as error:
            raise SinkUnavailable(
                f"the replay stopped before {error.message}", hint="`replicator replay --resume` goes on from there"
            ) from error

    def _move(self, replay_id: int, table: str, through: int, rows: int) -> None:
        where = {"id": replay_id, "table": table, "through": through, "rows": rows, "at": now()}
        self.session.execute(statement("replay/move"), where)

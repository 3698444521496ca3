"""Trace: what happened to one change, from its Redis entry to its row in ClickHouse, each step with its time.

Guarantees: what is not known is None and says why; an answer comes without ClickHouse, too. Only reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from attrs import frozen

from replicator.catalog import Catalog
from replicator.database import Session, statement
from replicator.errors import ReplicatorError
from replicator.lanes import STAND_IN
from replicator.model import GENERIC_LANE
from replicator.schema import quote_clickhouse
from replicator.sink import ClickHouseSink

CHANGES_MAX = 20
CHANGE = (
    "offset", "version", "table", "op", "key", "schema_version", "event_id", "event_at", "logged_at", "stream",
    "stream_epoch", "entry_id", "entry_row",
)  # fmt: skip
BATCH = ("first_offset", "last_offset", "rows", "checksum", "send_seq", "attempt", "frozen_at", "delivered_at")
FAILED = (
    "id", "first_offset", "last_offset", "reason", "error_code", "error_column", "error_message", "attempts",
    "first_failed_at", "last_failed_at", "status", "note",
)  # fmt: skip
REJECTED = ("id", "stream", "entry_id", "entry_row", "reason", "rejected_at", "status")
LEDGER = ("status", "query_id", "send_seq", "timeline", "delivered_at")
ATTEMPT = ("at", "send", "attempt", "first_offset", "last_offset", "outcome", "error_code", "query_id")
ATTEMPTS_MAX = 50
Answer = dict[str, Any]


@frozen(kw_only=True)
class Tracer:
    """Looks in both databases. ``failed_table`` is quoted."""

    session: Session
    sink: ClickHouseSink
    catalog: Catalog
    pipeline: str
    failed_table: str = '"failed_syncs"'

    def trace(self, text: str, *, table: str | None = None) -> Answer:
        """Everything known of the changes that an offset, an event id, an entry id or a key names, newest first."""
        number = int(text) if text.isdecimal() and len(text) < 19 else None
        where = {"offset": number, "text": text, "table": table, "limit": CHANGES_MAX + 1}
        rows = self.session.rows(statement("trace/changes"), where)
        rejected = self.session.rows(statement("trace/rejected"), {"text": text, "limit": CHANGES_MAX})
        alone = len(rows) == 1
        return {
            "asked": text,
            "changes": [self._change(row, alone=alone) for row in rows[:CHANGES_MAX]],
            "more": len(rows) > CHANGES_MAX,
            "rejected": [named(REJECTED, row) for row in rejected],
        }

    def _change(self, row: Sequence[Any], *, alone: bool) -> Answer:
        change = named(CHANGE, row)
        lane = GENERIC_LANE if change["schema_version"] == 0 else change["table"]
        where = {"lane": lane, "offset": change["offset"]}
        batch = self.session.row(statement("trace/batch"), where)
        failed = self.session.rows(statement("trace/failed").replace("failed_syncs", self.failed_table), where)
        change["batch"] = None if batch is None else named(BATCH, batch)
        change["failed_syncs"] = [named(FAILED, each) for each in failed]
        try:
            change["sink"] = self._in_sink(lane, change)
            change["sink"]["attempts"] = self._attempts(lane, change) if alone else None
        except ReplicatorError as error:
            change["sink"] = {"error": error.message}
        if change["batch"] is not None and change["failed_syncs"]:
            change["batch"]["delivered_at"] = _delivered_at(change)
        return change

    def _in_sink(self, lane: str, change: Answer) -> Answer:
        found = self.catalog.lane(lane, change["schema_version"])
        where = {"pipeline": self.pipeline, "offset": change["offset"]}
        sends = self.sink.rows(
            f"select toString(_send) from {quote_clickhouse(found.target)} "
            f"where _pipeline = {{pipeline:String}} and {found.offset_column} = {{offset:Int64}} order by _send",
            where,
        )
        return {
            "sends": [send for (send,) in sends],
            "current": None if lane == GENERIC_LANE else self._is_current(lane, change),
            "ledger": self._ledger(lane, change["offset"]),
        }

    def _ledger(self, lane: str, offset: int) -> Answer | None:
        """What the sink's ledger says of the offset; a parked range's row stays beside that of a later delivery."""
        rows = self.sink.rows(
            f"select {', '.join(LEDGER)} from replicator_batches final where pipeline = {{pipeline:String}} "
            "and table_name = {lane:String} and first_offset <= {offset:Int64} and last_offset >= {offset:Int64} "
            "order by status = 'parked', delivered_at desc limit 1",
            {"pipeline": self.pipeline, "lane": lane, "offset": offset},
        )
        return named(LEDGER, rows[0]) if rows else None

    def _attempts(self, lane: str, change: Answer) -> list[Answer] | None:
        """Every insert of the offset that ClickHouse's query_log still knows, a rebuild's too; None where we may not read it."""
        target = self.catalog.lane(lane, change["schema_version"]).target
        where = {
            "prefixes": [f"{self.pipeline}/{name}/" for name in (target, f"{lane}{STAND_IN}_log")],
            "since": change["logged_at"][:10],
            "offset": change["offset"],
        }
        try:
            rows = self.sink.rows(statement("trace/attempts"), {**where, "limit": ATTEMPTS_MAX})
        except ReplicatorError:
            return None
        return [named(ATTEMPT, row) for row in rows]

    def _is_current(self, lane: str, change: Answer) -> bool:
        """Whether T shows this change as its key's current row."""
        state = quote_clickhouse(self.catalog.history(lane)[-1].state_name)
        sql = (
            f"select count() from {state} final where _pipeline = {{pipeline:String}} and _version = {{version:UInt64}}"
        )
        return bool(self.sink.scalar(sql, {"pipeline": self.pipeline, "version": int(change["version"])}))


def _delivered_at(change: Answer) -> str | None:
    """When a change that was parked came in: its batch's record has the time of the parking."""
    if any(failed["status"] != "resolved" for failed in change["failed_syncs"]):
        return None
    ledger: Answer = change["sink"].get("ledger") or {}
    delivered_at: str | None = ledger.get("delivered_at") if ledger.get("status") == "delivered" else None
    return delivered_at


def named(names: Sequence[str], values: Sequence[Any]) -> Answer:
    """A row under its names, in plain JSON values."""
    return {name: plain(value) for name, value in zip(names, values, strict=True)}


def plain(value: Any) -> Any:
    """A value as JSON holds it: instants in UTC, exact numbers beyond 2^53 as text."""
    if isinstance(value, datetime):
        value = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        return f"{value.isoformat()}Z"
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 53 else str(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value.hex() if isinstance(value, bytes) else str(value)

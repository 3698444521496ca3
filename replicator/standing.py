"""Where each lane stands in ClickHouse: by the ledger, and by the rows themselves.

Guarantees: a lane's position is the end of the ledger's contiguous union from offset 1, never its newest row; it is
asked when no INSERT of ours runs any more. Of the sink it writes the ledger only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from threading import Event
from typing import Any

from attrs import define, frozen

from replicator.database import statement
from replicator.errors import SinkMisshapen
from replicator.model import GENERIC_LANE, TIMELINE_SHIFT, OffsetRange
from replicator.schema import literal_clickhouse, quote_clickhouse
from replicator.sink import LEDGER, ClickHouseSink

STILL_POLL_SECONDS = 0.25
RANGES_PER_STATEMENT = 1_000


@frozen(kw_only=True)
class LaneStanding:
    """``agreed`` is the end of the ledger's union, ``top`` the highest offset in ledger or rows, ``low`` the lowest of
    the rows, ``newest_send`` the highest number that a send of its rows had; 0 where there is none.

    ``rows_recorded`` and ``rows_held`` count what the ledger says of the agreed part, and what the table has of it.
    """

    lane: str
    target: str
    agreed: int = 0
    top: int = 0
    timeline: int = 0
    rows_recorded: int = 0
    rows_held: int = 0
    low: int = 0
    newest_send: int = 0


@frozen(kw_only=True)
class Recorded:
    """One row of the ledger."""

    first: int
    last: int
    row_count: int
    checksum: str
    status: str
    send_seq: int
    delivered_at: datetime


@define
class SinkStanding:
    """Asks one sink about one pipeline. ``tables`` names the log tables of lanes, by lane."""

    sink: ClickHouseSink
    pipeline: str
    tables: Callable[[], Mapping[str, str]]

    def await_stillness(self, stop: Event) -> None:
        """Until no INSERT of this pipeline runs in ClickHouse: one may outlive the process that sent it."""
        sql = (
            "select count() from system.processes where startsWith(Settings['log_comment'], {prefix:String}) "
            "and query_kind = 'Insert'"
        )
        while self.sink.scalar(sql, {"prefix": f"{self.pipeline}/"}) and not stop.wait(STILL_POLL_SECONDS):
            pass

    def missing(self) -> list[str]:
        """Which of the two tables that every pipeline needs are gone."""
        needed = (GENERIC_LANE, LEDGER)
        return sorted({*needed} - self.sink.columns_of(needed).keys())

    def lanes(self) -> dict[str, LaneStanding]:
        """Every lane that the ledger or the configuration knows; empty where nothing of ours was ever made."""
        found = {lane: LaneStanding(lane=lane, target=target) for lane, target in self._targets().items()}
        for row in self._ledger_ends():
            lane, agreed, top, timeline, recorded = row
            found[lane] = LaneStanding(
                lane=lane,
                target=self._targets().get(lane, _log_table(lane)),
                agreed=agreed,
                top=top,
                timeline=timeline,
                rows_recorded=recorded,
            )
        return {lane: self._with_rows(standing) for lane, standing in found.items()}

    def _targets(self) -> dict[str, str]:
        return {GENERIC_LANE: GENERIC_LANE, **self.tables()}

    def _ledger_ends(self) -> Sequence[Sequence[Any]]:
        try:
            return self.sink.rows(statement("standing/ledger_ends"), {"pipeline": self.pipeline})
        except SinkMisshapen:  # no ledger, or no database: nothing of ours is there yet
            return ()

    def _with_rows(self, standing: LaneStanding) -> LaneStanding:
        offset, version = offset_column(standing.lane), "version" if standing.lane == GENERIC_LANE else "_version"
        sql = (
            f"select min({offset}), max({offset}), countIf({offset} <= {{agreed:Int64}}), max({version}), max(_send) "
            f"from {quote_clickhouse(standing.target)} where _pipeline = {{pipeline:String}}"
        )
        try:
            low, top, held, newest, send = self.sink.rows(sql, {"agreed": standing.agreed, "pipeline": self.pipeline})[
                0
            ]
        except SinkMisshapen:  # dropped, or not made yet
            return standing
        return LaneStanding(
            lane=standing.lane,
            target=standing.target,
            agreed=standing.agreed,
            top=max(standing.top, int(top)),
            timeline=max(standing.timeline, int(newest) >> TIMELINE_SHIFT),
            rows_recorded=standing.rows_recorded,
            rows_held=int(held),
            low=int(low),
            newest_send=int(send),
        )

    def recorded(self, lane: str, *, after: int = 0) -> list[Recorded]:
        """The lane's ledger rows behind an offset, in the order of their ranges."""
        sql = (
            f"select first_offset, last_offset, row_count, checksum, status, send_seq, delivered_at from {LEDGER} final "
            "where pipeline = {pipeline:String} and table_name = {lane:String} and last_offset > {after:Int64} "
            "order by first_offset, last_offset"
        )
        rows = self.sink.rows(sql, {"pipeline": self.pipeline, "lane": lane, "after": after})
        names = ("first", "last", "row_count", "checksum", "status", "send_seq", "delivered_at")
        return [Recorded(**dict(zip(names, row, strict=True))) for row in rows]

    def rows_held(self, standing: LaneStanding, ranges: Sequence[OffsetRange]) -> dict[int, int]:
        """How many rows of each range the table holds, by the range's first offset. The ranges do not overlap."""
        sql = statement("standing/rows_held").replace("$offset", offset_column(standing.lane))
        firsts, lasts = [r.first for r in ranges], [r.last for r in ranges]
        where = {"firsts": firsts, "lasts": lasts, "low": min(firsts), "high": max(lasts), "pipeline": self.pipeline}
        try:
            rows = self.sink.rows(sql.replace("$target", quote_clickhouse(standing.target)), where)
        except SinkMisshapen:  # dropped
            return {}
        return {int(first): int(count) for first, count in rows}

    def forget(self, lane: str, ranges: Sequence[OffsetRange]) -> None:
        """Take ledger rows out: what they recorded is not there any more."""
        for start in range(0, len(ranges), RANGES_PER_STATEMENT):
            some = ", ".join(f"({r.first:d}, {r.last:d})" for r in ranges[start : start + RANGES_PER_STATEMENT])
            self._forget(lane, f"(first_offset, last_offset) in ({some})")

    def forget_behind(self, lane: str, offset: int) -> None:
        """Take the ledger rows behind an offset out: they are not part of its union."""
        self._forget(lane, f"last_offset > {offset:d}")

    def _forget(self, lane: str, condition: str) -> None:
        ours = f"pipeline = {literal_clickhouse(self.pipeline)} and table_name = {literal_clickhouse(lane)}"
        self.sink.command(f"delete from {LEDGER} where {ours} and {condition}")


def offset_column(lane: str) -> str:
    """What the lane's log table calls the offset."""
    return "log_offset" if lane == GENERIC_LANE else "_offset"


def _log_table(lane: str) -> str:
    return GENERIC_LANE if lane == GENERIC_LANE else f"{lane}_log"

"""Notices what stands still though it could move: a loop may beat and get nowhere. Pure but for the clock it is told.

Guarantees: what has nothing to do, waits within its interval, is paused, or says itself why it waits, never counts
as standing still; of two things the one that moves never hides the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from attrs import define, evolve, field

from replicator.status import StreamStatus, TableStatus


@define
class Stall:
    """Remembers where each stream and table stood, and since when."""

    _stood: dict[tuple[str, str], tuple[Hashable, float]] = field(factory=dict)

    def streams(self, streams: Sequence[StreamStatus], *, paused: bool, clock: float) -> list[StreamStatus]:
        """The streams, each with how long it has stood still."""
        return [
            evolve(
                stream,
                stalled_seconds=self._seconds(
                    ("stream", stream.stream),
                    (stream.stream_epoch, stream.last_entry_id),
                    could_move=bool(stream.backlog_entries) and not paused,
                    clock=clock,
                ),
            )
            for stream in streams
        ]

    def tables(self, tables: Sequence[TableStatus], due: Mapping[str, bool], *, clock: float) -> list[TableStatus]:
        """The tables likewise; ``due`` says of which the oldest change has waited longer than it is given."""
        return [
            evolve(
                table,
                stalled_seconds=self._seconds(
                    ("table", table.table),
                    table.checkpoint_offset,
                    could_move=bool(table.pending) and due.get(table.table, False) and not _explained(table),
                    clock=clock,
                ),
            )
            for table in tables
        ]

    def _seconds(self, what: tuple[str, str], where: Hashable, *, could_move: bool, clock: float) -> float:
        stood = self._stood.get(what)
        if stood is None or stood[0] != where or not could_move:
            self._stood[what] = (where, clock)
            return 0.0
        return clock - stood[1]


def _explained(table: TableStatus) -> bool:
    return bool(table.paused or table.stopped or table.last_error or table.circuit == "open")

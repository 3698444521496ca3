"""What the simulated ClickHouse has on its disk: physical rows under their sends, tokens, the state that a view feeds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from replicator.model import OffsetRange


@frozen(kw_only=True, eq=False)
class Row:
    """One physical row of a log table: the change as the log has it, under one send."""

    offset: int
    send: int
    hash: int
    change: Mapping[str, Any]


@define(eq=False)
class Table:
    rows: dict[int, list[Row]] = field(factory=dict)
    tokens: deque[str] = field(factory=deque)
    state: dict[str, Mapping[str, Any]] = field(factory=dict)
    """Of a declared table: the newest change of each key. The tokens of its state table stand in ``state_tokens``."""
    state_tokens: deque[str] = field(factory=deque)

    def copy(self) -> Table:
        rows = {offset: list(rows) for offset, rows in self.rows.items()}
        return Table(rows, deque(self.tokens), dict(self.state), deque(self.state_tokens))

    def final(self, offsets: OffsetRange | None = None) -> list[Row]:
        """What FINAL shows: of each offset the newest send."""
        chosen = [max(rows, key=lambda row: row.send) for _, rows in sorted(self.rows.items())]
        return [row for row in chosen if offsets is None or offsets.first <= row.offset <= offsets.last]

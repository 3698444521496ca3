"""Offsets that the sink need not have, since they are parked or discarded: a few long ranges, or thousands of single rows.

Guarantees: what is asked of an offset, here or in SQL, costs a search and not a walk through all of them. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from attrs import frozen

from replicator.compare import Offsets
from replicator.model import OffsetRange


@frozen
class Known:
    """``ranges`` are in order and apart from one another."""

    ranges: tuple[OffsetRange, ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[OffsetRange]) -> Known:
        """The same offsets in as few ranges as they take."""
        found: list[OffsetRange] = []
        for each in sorted(ranges, key=lambda r: r.first):
            if found and each.first <= found[-1].last + 1:
                found[-1] = OffsetRange(first=found[-1].first, last=max(found[-1].last, each.last))
            else:
                found.append(each)
        return cls(tuple(found))

    @cached_property
    def firsts(self) -> list[int]:
        return [each.first for each in self.ranges]

    @cached_property
    def lasts(self) -> list[int]:
        return [each.last for each in self.ranges]

    def hold(self, places: Offsets) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the offsets lie in one of the ranges."""
        if not self.ranges:
            return np.zeros(len(places), np.bool_)
        nearest = np.searchsorted(np.array(self.firsts, np.int64), places, "right") - 1
        reached = np.array(self.lasts, np.int64)[np.maximum(nearest, 0)] >= places
        mask: np.ndarray[Any, np.dtype[np.bool_]] = (nearest >= 0) & reached
        return mask

    def __contains__(self, offset: int) -> bool:
        return bool(self.hold(np.array([offset], np.int64))[0])

    def but_duckdb(self) -> str:
        """A condition on ``log_offset`` of change_log: in none of the ranges."""
        if not self.ranges:
            return "true"
        known = f"select unnest({self.firsts}::bigint[]) as first_offset, unnest({self.lasts}::bigint[]) as last_offset"
        return (
            f"log_offset not in (select c.log_offset from change_log c asof join ({known}) k "
            "on c.log_offset >= k.first_offset where c.log_offset <= k.last_offset)"
        )

    def but_clickhouse(self, column: str) -> str:
        """The same for a column in ClickHouse. The literals count as one element each, however long they are."""
        if not self.ranges:
            return "true"
        firsts, lasts = (f"cast({each}, 'Array(Int64)')" for each in (self.firsts, self.lasts))
        nearest = f"transform(roundDown({column}, {firsts}), {firsts}, {lasts}, toInt64(0))"
        return f"({column} < {self.firsts[0]:d} or {column} > {nearest})"

"""What is known to be missing is looked up in the same way here and in SQL."""

from __future__ import annotations

import random

import duckdb
import numpy as np
import pytest

from replicator.model import OffsetRange
from replicator.verify_known import Known


@pytest.mark.parametrize("seed", range(20))
def test_an_offset_is_known_where_one_of_the_ranges_has_it(seed: int) -> None:
    dice = random.Random(seed)
    spans = [(first, first + dice.choice((0, 0, 1, 9))) for first in dice.choices(range(1, 200), k=dice.randrange(30))]
    known = Known.of([OffsetRange(first=first, last=last) for first, last in spans])
    expected = [any(first <= at <= last for first, last in spans) for at in range(1, 221)]
    assert known.hold(np.arange(1, 221)).tolist() == expected == [at in known for at in range(1, 221)]
    assert all(b.first > a.last + 1 for a, b in zip(known.ranges, known.ranges[1:], strict=False))
    connection = duckdb.connect()
    connection.execute("create table change_log as select range as log_offset from range(1, 221)")
    rows = connection.execute(f"select log_offset from change_log where {known.but_duckdb()} order by 1").fetchall()
    assert [at for (at,) in rows] == [at for at in range(1, 221) if not expected[at - 1]]

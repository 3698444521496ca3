"""Which batches a restarted ClickHouse still has: few questions where all is there, the right answer wherever it is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from replicator.model import NOTHING, Batch, Checksum, OffsetRange
from replicator.sink_return import BATCHES_PER_QUESTION, SinkReturn


def row(offset: int) -> Checksum:
    return Checksum(rows=1, sum=offset * 0x9E3779B97F4A7C15 % (1 << 64), xor=offset * 0xC2B2AE3D27D4EB4F % (1 << 64))


def checksum(offsets: range, gone: frozenset[int]) -> Checksum:
    return sum((row(offset) for offset in offsets if offset not in gone), NOTHING)


def batches_of(sizes: list[tuple[int, int, int]]) -> list[Batch]:
    """Batches of (rows, gap before, version)."""
    made, at = [], 0
    for number, (rows, gap, version) in enumerate(sizes):
        first = at + gap + 1
        at = first + rows - 1
        made.append(
            Batch(
                batch_id=str(number),
                lane="trades",
                offsets=OffsetRange(first=first, last=at),
                row_count=rows,
                checksum=checksum(range(first, at + 1), frozenset()),
                schema_version=version,
                send_seq=number + 1,
            )
        )
    return made


def asked(batches: list[Batch], gone: frozenset[int]) -> tuple[set[str], int]:
    """What is said to be missing, and how many questions that took."""
    questions = []
    there = {offset for b in batches for offset in range(b.offsets.first, b.offsets.last + 1)} - gone

    def holds(_: Any, batch: Batch) -> bool:
        questions.append(batch)
        held = (row(o) for o in range(batch.offsets.first, batch.offsets.last + 1) if o in there)
        return sum(held, NOTHING) == batch.checksum

    nothing: Any = SimpleNamespace()
    room = SinkReturn(
        session=nothing,
        ledger=nothing,
        sink=nothing,
        lane=lambda lane, version: nothing,
        ledger_row=nothing,
        prepare=nothing,
        holds=holds,
    )
    return room._not_held(batches), len(questions)


sizes = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.sampled_from([1, 1, 1, 2])), max_size=40)


@given(sizes, st.frozensets(st.integers(1, 120), max_size=6))
def test_what_is_missing_is_found_whatever_stands_beside_it(taken: list[tuple[int, int, int]], gone: frozenset[int]):
    batches = batches_of(taken)
    wanted = {b.batch_id for b in batches if gone & set(range(b.offsets.first, b.offsets.last + 1))}
    assert asked(batches, gone)[0] == wanted


def test_an_hour_of_small_batches_takes_a_few_questions() -> None:
    batches = batches_of([(2, 1, 1)] * 36_000)
    missing, questions = asked(batches, frozenset())
    assert (missing, questions) == (set(), -(-36_000 // BATCHES_PER_QUESTION))
    missing, questions = asked(batches, frozenset([3 * 20_000]))
    assert len(missing) == 1 and questions < 36 + 2 * 10 + 1, "one that is missing costs a bisection"

"""Idempotency keys against a plain dictionary, and the window at its edges."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from attrs import define

from replicator.dedup import IdMemory, Window


@define
class Clock:
    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


def memory(*, seconds: float = 100.0, ids: int = 1000) -> tuple[IdMemory, Clock]:
    clock = Clock()
    return IdMemory(Window(seconds=seconds, ids=ids), clock), clock


def claim(memory: IdMemory, *pairs: tuple[int, int]) -> tuple[list[bool], int]:
    ids, contents = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    new, conflicts = memory.claim(ids * np.uint64(0x9E3779B97F4A7C15), contents)
    return new.tolist(), conflicts


def test_the_same_id_and_content_is_new_once() -> None:
    ids, _ = memory()
    assert claim(ids, (1, 7), (2, 7)) == ([True, True], 0)
    assert claim(ids, (1, 7), (3, 7)) == ([False, True], 0)


def test_another_content_is_logged_and_counted_and_then_known_too() -> None:
    ids, _ = memory()
    claim(ids, (1, 7))
    assert claim(ids, (1, 8)) == ([True], 1)
    assert claim(ids, (1, 8), (1, 7), (1, 9)) == ([False, False, True], 1)


def test_repeats_and_conflicts_within_one_read_keep_the_first() -> None:
    ids, _ = memory()
    assert claim(ids, (1, 7), (1, 7), (2, 1), (1, 8), (2, 1)) == ([True, False, True, True, False], 1)


def test_an_id_is_forgotten_after_its_seconds() -> None:
    ids, clock = memory(seconds=100)
    claim(ids, (1, 7))
    clock.at += 99
    assert claim(ids, (1, 7)) == ([False], 0)
    clock.at += 2
    assert claim(ids, (1, 7)) == ([True], 0)


def test_an_id_is_forgotten_behind_so_many_newer_ones() -> None:
    ids, _ = memory(ids=10)
    claim(ids, (1, 7))
    claim(ids, *((n, 7) for n in range(2, 10)))
    assert claim(ids, (1, 7)) == ([False], 0)
    claim(ids, *((n, 7) for n in range(10, 13)))
    assert claim(ids, (1, 7)) == ([True], 0)


def test_what_was_loaded_is_known_until_its_own_time_is_over() -> None:
    ids, clock = memory(seconds=100)
    scrambled = np.array([1, 2, 3], np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    ids.load(scrambled, np.array([7, 7, 7], np.uint64), np.array([901.0, 950.0, 1000.0]))
    assert claim(ids, (1, 7), (3, 7)) == ([False, False], 0)
    clock.at += 10
    assert claim(ids, (1, 7), (2, 7)) == ([True, False], 0)


@pytest.mark.parametrize("seed", range(20))
def test_it_decides_as_a_dictionary_would(seed: int) -> None:
    dice = random.Random(seed)
    ids, clock = memory(seconds=50, ids=300)
    claimed: list[tuple[int, int, float, int]] = []
    for _ in range(120):
        clock.at += dice.random() * 3
        pairs = [(dice.randint(1, 400), dice.randint(1, 2)) for _ in range(dice.randint(1, 30))]
        assert claim(ids, *pairs) == expected(claimed, pairs, clock.at), f"seed {seed}"
    assert len(ids) < 2000


def expected(
    claimed: list[tuple[int, int, float, int]], pairs: Sequence[tuple[int, int]], at: float
) -> tuple[list[bool], int]:
    """The same by hand. An id is as old as the read that claimed it."""
    start = len(claimed)
    lowest = start - 300
    known = {(i, c) for i, c, when, number in claimed if when >= at - 50 and number >= lowest}
    new, conflicts = [], 0
    for i, c in pairs:
        fresh = (i, c) not in known
        conflicts += fresh and any(other == i for other, _ in known)
        known.add((i, c))
        new.append(fresh)
        if fresh:
            claimed.append((i, c, at, len(claimed)))
    return new, conflicts

"""The guard of the disk: what it calls too little, and when it calls it enough again."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import define, field

from replicator.free_space import MEASURE_SECONDS, FreeSpace, disk_free_bytes

FLOOR = 800


@define
class Disk:
    """A disk and a clock that tests turn."""

    free: int | None = 10_000
    seconds: float = 0.0
    asked: int = 0
    guard: FreeSpace = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.guard = FreeSpace(
            path=Path("log.duckdb"), floor_bytes=FLOOR, measure=self.measure, clock=lambda: self.seconds
        )

    def measure(self, _: Path) -> int | None:
        self.asked += 1
        return self.free

    def low_with(self, free: int | None) -> bool:
        self.free, self.seconds = free, self.seconds + 2 * MEASURE_SECONDS
        return self.guard.is_low()


def test_it_is_low_below_the_floor_and_not_at_it() -> None:
    disk = Disk()
    assert [disk.low_with(free) for free in (10_000, FLOOR, FLOOR - 1)] == [False, False, True]


def test_once_low_a_little_more_is_not_enough() -> None:
    disk = Disk()
    assert disk.low_with(0)
    assert disk.low_with(FLOOR) and disk.low_with(disk.guard.resume_bytes - 1)
    assert not disk.low_with(disk.guard.resume_bytes)
    assert not disk.low_with(FLOOR)


def test_a_disk_that_cannot_be_measured_is_not_called_full() -> None:
    disk = Disk()
    assert not disk.low_with(None)
    assert disk.low_with(1) and not disk.low_with(None)


def test_a_floor_of_zero_turns_it_off() -> None:
    guard = FreeSpace(path=Path("x"), floor_bytes=0, measure=lambda _: 0)
    assert not guard.is_low()


def test_it_asks_a_few_times_a_second_however_often_it_is_asked() -> None:
    disk = Disk()
    assert [disk.guard.is_low() for _ in range(1000)] == [False] * 1000
    assert disk.asked == 1


@pytest.mark.parametrize("place", [".", "not/there/yet.duckdb"])
def test_the_disk_of_a_file_that_is_not_there_yet_is_measured(tmp_path: Path, place: str) -> None:
    free = disk_free_bytes(tmp_path / place)
    assert free is not None and free > 0


def test_a_path_that_leads_through_a_file_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert disk_free_bytes(tmp_path / "file" / "log.duckdb") is None

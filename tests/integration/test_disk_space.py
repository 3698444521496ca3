"""A disk that fills up under the running service: capture stops before it is full, or survives that it was, and goes on.
A file that is damaged: the service ends and says what to do.

On a small file system of its own where one may be mounted.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from capture_room import wait_until
from service_room import ServiceRoom

from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import DatabaseUnavailable, LogCorrupt, ReplicatorError
from replicator.status import State
from replicator.status_live import Watch
from replicator.status_probe import Probe

DISK_BYTES = 64 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system may be mounted here: {getattr(error, 'stderr', error)!r}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def room_on(place: Path, redis_url: str, server: ClickHouse, database: str, floor: int) -> ServiceRoom:
    sections = f"[retention]\nmin_free_bytes = {floor}\n"
    return ServiceRoom(directory=place, redis_url=redis_url, server=server, database=database, sections=sections)


@pytest.fixture
def guarded(
    redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str, tmp_path: Path
) -> Iterator[ServiceRoom]:
    """With a floor of 1 GB; how much is free is what the test says."""
    room = room_on(tmp_path, redis_url, clickhouse_server, clickhouse_database, 10**9)
    yield room
    room.stop()
    room.client.close()


def numbers(last: int) -> list[int]:
    return list(range(1, last + 1))


def report(room: ServiceRoom) -> dict[str, object]:
    service = room.service
    probe = Probe(
        pipeline="main", source=service.source, sink=service.sink, streams=lambda: ("trades",), stop=service.stop
    )
    return Watch(service=service, probe=probe, stop=service.stop).report().as_json()


def test_capture_waits_while_little_is_free_and_goes_on_by_itself(guarded: ServiceRoom) -> None:
    room, free = guarded, [10**10]
    room.start()
    room.service.space.measure = lambda _: free[0]
    room.service.controls.pause("deliver", actor="test")
    room.add(1, 20)
    room.wait_logged(20)
    free[0] = 10**9 - 1
    wait_until(room.service.space.is_low, "the guard to notice")
    beats = room.service.progress.heartbeat_at
    wait_until(lambda: room.service.progress.heartbeat_at > beats + 1, "the read that is under way to end")
    head = room.service.changelog.head
    room.service.controls.resume("deliver", actor="test")
    room.wait_delivered(head)  # deliver goes on
    room.add(21, 60)
    told = report(room)
    assert told["state"] == State.FAILED and told["disk_low"] is True
    assert any("min_free_bytes" in reason for reason in told["reasons"])  # type: ignore[attr-defined]
    beats = room.service.progress.heartbeat_at
    wait_until(lambda: room.service.progress.heartbeat_at > beats + 1, "capture's reader to come round a few times")
    assert room.service.changelog.head == 20
    free[0] = 10**9  # not enough to begin again
    wait_until(lambda: room.service.space.free_bytes == 10**9, "a measurement")
    assert room.service.space.is_low()
    free[0] = 2 * 10**9
    room.wait_delivered(60)
    assert room.logged == numbers(60) and room.held == numbers(60)
    assert report(room)["disk_low"] is False


def resting(room: ServiceRoom) -> bool:
    """Whether all that capture has read is logged."""
    positions = room.service.progress.positions
    logged = room.rows("select last_entry_id from stream_positions")
    return bool(positions) and [(positions["trades"].last_entry_id,)] == logged


def test_a_damaged_file_ends_the_service_with_what_to_do(guarded: ServiceRoom) -> None:
    room = guarded.start()
    room.add(1, 3_000)
    room.wait_delivered(3_000)
    room.stop()
    content = bytearray(room.path.read_bytes())
    for place in range(12_288 + 262_144, len(content), 4_096):  # behind the headers and the first block
        content[place] ^= 1
    room.path.write_bytes(content)
    room.asked("truncate table {d}.change_log")  # so that the log has to be read
    try:
        room.start()
    except LogCorrupt as error:
        failed: ReplicatorError = error
    else:
        failed = room.wait_failed()
    assert isinstance(failed, LogCorrupt)
    assert "log.duckdb" in failed.message and "restore" in failed.hint
    assert room.path.read_bytes()[:12_288] == content[:12_288]


def fill(disk: Path, leave: int = 0) -> Path:
    """Write until nothing, or so many bytes, are free."""
    filler = disk / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while shutil.disk_usage(disk).free > leave:
            file.write(b"\0" * (1 << 16))
            file.flush()
    return filler


@pytest.fixture
def small(
    request: pytest.FixtureRequest, disk: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str
) -> Iterator[ServiceRoom]:
    """The service on the small disk, with a floor of so many MB, and a hundred changes delivered."""
    room = room_on(disk, redis_url, clickhouse_server, clickhouse_database, request.param << 20).start()
    room.add(1, 100)
    room.wait_delivered(100)
    yield room
    room.stop()
    room.client.close()


@pytest.mark.parametrize("small", [24], indirect=True)
def test_a_small_disk_is_guarded_before_it_is_full(disk: Path, small: ServiceRoom) -> None:
    filler = fill(disk, leave=26 << 20)
    for first in range(101, 6_101, 1_000):
        small.add(first, first + 999, v="x" * 3_000)
    wait_until(small.service.space.is_low, "the guard to notice")
    head = wait_until(lambda: small.service.changelog.head if resting(small) else 0, "capture to rest")
    assert head < 6_100 and shutil.disk_usage(disk).free > 0
    assert not small.service.loops["capture"].error
    filler.unlink()
    small.wait_delivered(6_100)
    assert small.logged == numbers(6_100) and small.held == numbers(6_100)


@pytest.mark.parametrize("small", [0], indirect=True)
@pytest.mark.parametrize("where", ["at the WAL", "at a checkpoint"])
def test_a_disk_that_was_full_costs_neither_the_process_nor_a_change(
    disk: Path, small: ServiceRoom, where: str
) -> None:
    small.add(101, 600, v="x" * 3_000)
    small.wait_delivered(600)
    filler = fill(disk)
    if where == "at a checkpoint":
        session = small.service.database.session()
        with pytest.raises(DatabaseUnavailable) as raised:
            session.execute("checkpoint")
        session.close()
        assert raised.value.code == "fatal"
    small.add(601, 1_000, v="x" * 3_000)
    wait_until(lambda: small.service.loops["capture"].error, "capture to meet the full disk")
    assert small.failed is None
    filler.unlink()
    small.wait_delivered(1_000)
    assert small.logged == numbers(1_000) and small.held == numbers(1_000)
    assert small.physical == 1_000

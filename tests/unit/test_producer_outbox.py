"""The buffer between writers and the sending thread: order, back-pressure, retries, and never a silent loss."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from replicator.errors import ReplicatorError, SourceRefused, SourceUnavailable, UsageError
from replicator.outbox import BufferLimits, Outbox, Parcel


def parcel(number: int, rows: int = 1, stream: str = "s") -> Parcel:
    return Parcel(stream, b"%06d" % number, 1, rows)


class Far:
    """A far end that keeps what it gets, and can be told to be silent or to refuse."""

    def __init__(self) -> None:
        self.got: list[Parcel] = []
        self.attempts = 0
        self.error: ReplicatorError | None = None
        self.refused_stream: str | None = None
        self.gate = threading.Event()
        self.gate.set()

    def deliver(self, parcels: Sequence[Parcel]) -> tuple[Sequence[Parcel], ReplicatorError | None]:
        self.gate.wait(10)
        self.attempts += 1
        if self.error:
            raise self.error
        self.got += [each for each in parcels if each.stream != self.refused_stream]
        unsent = [each for each in parcels if each.stream == self.refused_stream]
        return unsent, SourceRefused("wrong type", hint="rename it") if unsent else None


@pytest.fixture
def far() -> Far:
    return Far()


@pytest.fixture
def outbox(far: Far):
    made: list[Outbox] = []

    def make(**limits: float) -> Outbox:
        made.append(Outbox(far.deliver, BufferLimits(**limits)))
        return made[-1]

    yield make
    far.gate.set()
    far.error = far.refused_stream = None
    for each in made:
        each.close(10)
        assert not each.sender or not each.sender.is_alive()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.002)


def test_everything_accepted_is_sent_in_order(outbox, far):
    box = outbox(pipeline_entries=7)
    for number in range(1000):
        box.add(parcel(number))
    box.flush(10)
    assert [each.commands for each in far.got] == [b"%06d" % number for number in range(1000)]
    assert box.unsent_rows == 0


def test_a_failed_send_is_repeated_with_the_same_parcels_before_any_later_one(outbox, far):
    box = outbox(pipeline_entries=2)
    far.error = SourceUnavailable("down")
    for number in range(5):
        box.add(parcel(number))
    eventually(lambda: far.attempts >= 2)
    far.error = None
    box.add(parcel(5))
    box.flush(10)
    assert [each.commands for each in far.got] == [b"%06d" % number for number in range(6)]


def test_a_refused_stream_does_not_hold_back_another_and_keeps_its_order(outbox, far):
    box = outbox()
    far.refused_stream = "bad"
    for number in range(10):
        box.add(parcel(number, stream="bad" if number % 2 else "good"))
    with pytest.raises(SourceRefused, match="5 changes"):
        box.flush(10)
    assert [each.commands for each in far.got] == [b"%06d" % number for number in range(0, 10, 2)]
    far.refused_stream = None
    box.flush(10)
    assert [each.commands for each in far.got[5:]] == [b"%06d" % number for number in range(1, 10, 2)]


def test_a_full_buffer_holds_the_writer_until_there_is_room(outbox, far):
    box = outbox(rows_max=10)
    far.gate.clear()
    for number in range(10):
        box.add(parcel(number))
    writer = threading.Thread(target=box.add, args=(parcel(10),))
    writer.start()
    writer.join(0.1)
    assert writer.is_alive()
    assert box.unsent_rows == 10
    far.gate.set()
    writer.join(10)
    assert not writer.is_alive()


@pytest.mark.parametrize("limit", [{"rows_max": 10}, {"bytes_max": 60}])
def test_a_buffer_that_stays_full_refuses_and_says_how_much_waits(outbox, far, limit):
    box = outbox(block_seconds=0.05, **limit)
    far.error = SourceUnavailable("down", hint="start it")
    for number in range(10):
        box.add(parcel(number))
    eventually(lambda: box.error is not None)
    with pytest.raises(SourceUnavailable, match=r"10 changes \(60 bytes\).*not accepted: down \(start it\)"):
        box.add(parcel(10))
    assert box.unsent_rows == 10


def test_a_full_buffer_behind_a_refusal_does_not_wait(outbox, far):
    box = outbox(rows_max=1, block_seconds=60)
    far.refused_stream = "s"
    box.add(parcel(0))
    eventually(lambda: box.error is not None)
    began = time.monotonic()
    with pytest.raises(SourceRefused, match="not accepted"):
        box.add(parcel(1))
    assert time.monotonic() - began < 30


def test_a_parcel_larger_than_the_buffer_goes_alone(outbox, far):
    box = outbox(rows_max=10)
    box.add(parcel(0))
    box.add(parcel(1, rows=1000))
    box.add(parcel(2))
    box.flush(10)
    assert [each.rows for each in far.got] == [1, 1000, 1]


def test_flush_says_how_many_are_unsent_and_keeps_them(outbox, far):
    box = outbox()
    far.error = SourceUnavailable("down", hint="start it")
    box.add(parcel(0, rows=3))
    with pytest.raises(SourceUnavailable, match=r"3 changes .* unsent after 0.2 s: down"):
        box.flush(0.2)
    far.error = None
    box.flush(10)
    assert len(far.got) == 1


def test_flush_without_an_error_yet_says_that_it_is_slow(outbox, far):
    box = outbox()
    far.gate.clear()
    box.add(parcel(0))
    with pytest.raises(SourceUnavailable, match="1 changes"):
        box.flush(0.01)


def test_flush_does_not_wait_for_what_others_add_meanwhile(outbox, far):
    box = outbox()
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            box.add(parcel(number))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            box.flush(10)
    finally:
        stop.set()
        writer.join()


def test_flush_with_nothing_to_send_returns_even_after_an_error(outbox, far):
    box = outbox()
    box.flush(0)
    far.refused_stream = "s"
    box.add(parcel(0))
    with pytest.raises(SourceRefused):
        box.flush(10)
    far.refused_stream = None
    box.flush(10)
    box.flush(0)


def test_many_writers_lose_nothing(outbox, far):
    box = outbox(rows_max=50)

    def write(start: int) -> None:
        for number in range(start, start + 500):
            box.add(parcel(number))

    writers = [threading.Thread(target=write, args=(start,)) for start in range(0, 4000, 500)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    box.flush(10)
    assert sorted(each.commands for each in far.got) == [b"%06d" % number for number in range(4000)]
    for start in range(0, 4000, 500):
        own = [each.commands for each in far.got if start <= int(each.commands) < start + 500]
        assert own == sorted(own)


def test_a_closed_box_refuses_and_can_be_closed_again(outbox, far):
    box = outbox()
    box.add(parcel(0))
    box.close(10)
    box.close(10)
    assert len(far.got) == 1
    with pytest.raises(UsageError, match="closed"):
        box.add(parcel(1))


def test_close_raises_for_what_is_unsent_and_ends_the_thread(far):
    box = Outbox(far.deliver, BufferLimits())
    far.error = SourceUnavailable("down")
    box.add(parcel(0, rows=7))
    with pytest.raises(SourceUnavailable, match="7 changes"):
        box.close(0.1)
    assert not box.sender.is_alive()


def test_a_fault_in_the_sending_thread_reaches_those_who_wait():
    def broken(parcels: Sequence[Parcel]) -> tuple[Sequence[Parcel], None]:
        raise ZeroDivisionError("a bug")

    box = Outbox(broken, BufferLimits())
    box.add(parcel(0))
    with pytest.raises(ReplicatorError, match=r"1 changes.*a bug"):
        box.flush(10)
    with pytest.raises(UsageError, match="closed"):
        box.add(parcel(1))
    with pytest.raises(ReplicatorError, match="1 changes"):
        box.close(10)


def test_a_forked_child_is_told_to_make_its_own(outbox):
    box = outbox()
    box.add(parcel(0))
    box.flush(10)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            box.add(parcel(1))
        except UsageError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        assert b"another process" in answer.read()


def test_limits_that_keep_nothing_are_refused():
    with pytest.raises(ValueError, match="rows_max"):
        BufferLimits(rows_max=0)

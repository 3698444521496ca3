"""What every Sink does, the real one and the fake: one suite for both."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pytest
from attrs import define, evolve
from contract.fakes import FakeClickHouse, Fault
from log_room import hashed_changes

from replicator.deliver_work import Sink
from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import OutcomeUnknown, ReplicatorError, SinkMisshapen, SinkRejected, SinkUnavailable
from replicator.lanes import ROW_HASH, generic_lane
from replicator.model import Checksum, OffsetRange
from replicator.sink import ClickHouseSink, LedgerRow, Send, SinkOptions

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations" / "clickhouse"
LANE = generic_lane()


class FarEnd(Protocol):
    """A sink and what a test does to the server behind it."""

    sink: Sink

    def physical(self) -> list[tuple[int, int]]: ...
    def ledger(self) -> list[tuple[int, int, str]]: ...
    def kill(self) -> None: ...
    def start(self) -> None: ...
    def set_window(self, batches: int) -> None: ...
    def refuse(self, offset: int) -> None: ...
    def break_view(self, broken: bool) -> None: ...
    def drop(self) -> None: ...


@define
class Fake:
    sink: FakeClickHouse

    def physical(self) -> list[tuple[int, int]]:
        return self.sink.physical("change_log")

    def ledger(self) -> list[tuple[int, int, str]]:
        return sorted((row.first_offset, row.last_offset, row.status) for row in self.sink.ledger.values())

    def kill(self) -> None:
        self.sink.kill()

    def start(self) -> None:
        self.sink.start()

    def set_window(self, batches: int) -> None:
        self.sink.window = batches

    def refuse(self, offset: int) -> None:
        self.sink.refuses = lambda each: each == offset

    def break_view(self, broken: bool) -> None:
        self.sink.view_throws = broken

    def drop(self) -> None:
        self.sink.tables = ()


@define
class Real:
    sink: ClickHouseSink
    server: ClickHouse

    def physical(self) -> list[tuple[int, int]]:
        return [(o, s) for o, s in self.sink.rows("select log_offset, _send from change_log order by 1, 2")]

    def ledger(self) -> list[tuple[int, int, str]]:
        sql = "select first_offset, last_offset, status from replicator_batches final order by all"
        return [(a, b, c) for a, b, c in self.sink.rows(sql)]

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def set_window(self, batches: int) -> None:
        self.sink.command(f"alter table change_log modify setting non_replicated_deduplication_window = {batches}")

    def refuse(self, offset: int) -> None:
        self.sink.command(f"alter table change_log add constraint not_this check log_offset != {offset}")

    def break_view(self, broken: bool) -> None:
        if broken:
            self.sink.command("create table seen (log_offset Int64) engine = MergeTree order by ()")
            self.sink.command(
                "create materialized view throws to seen as select throwIf(log_offset > 0) as log_offset from change_log"
            )
        else:
            self.sink.command("drop view throws")

    def drop(self) -> None:
        self.sink.command("drop table change_log sync")


@pytest.fixture(params=["fake", "clickhouse"])
def far_end(request: pytest.FixtureRequest) -> Iterator[FarEnd]:
    if request.param == "fake":
        yield Fake(FakeClickHouse())
        return
    server: ClickHouse = request.getfixturevalue("clickhouse_server")
    database: str = request.getfixturevalue("clickhouse_database")
    sink = ClickHouseSink(
        SinkOptions(endpoint=server.endpoint, user=server.user, password=server.password, database=database)
    )
    sink.migrate(MIGRATIONS)
    yield Real(sink, server)
    sink.close()


def make(first: int, last: int, send: int = 1, attempt: int = 1, skip: int = 0) -> tuple[Send, pa.Table]:
    """A send of a range of the generic lane, less one offset (that of another lane)."""
    table, checksum = hashed_changes([offset for offset in range(first, last + 1) if offset != skip])
    return Send(
        pipeline="main",
        target="change_log",
        offsets=OffsetRange(first=first, last=last),
        checksum=checksum,
        send=send,
        attempt=attempt,
    ), table.drop_columns([ROW_HASH]).append_column("_send", pa.array([send] * table.num_rows, pa.uint64()))


def offsets(first: int, last: int) -> OffsetRange:
    return OffsetRange(first=first, last=last)


def test_what_was_inserted_is_held_with_the_checksum_it_was_sent_with(far_end: FarEnd) -> None:
    send, table = make(1, 500, skip=77)
    far_end.sink.insert(send, table)
    assert far_end.sink.held(LANE, "main", offsets(1, 500)) == send.checksum
    assert far_end.sink.held(LANE, "other", offsets(501, 900)) == Checksum(rows=0, sum=0, xor=0)
    assert far_end.sink.keys_behind(LANE, "main", offsets(1, 500)) == 0


def test_neighbouring_ranges_add_up(far_end: FarEnd) -> None:
    first, second = make(1, 10, send=1), make(11, 20, send=2)
    far_end.sink.insert(*first)
    far_end.sink.insert(*second)
    whole, _ = make(1, 20)
    assert far_end.sink.held(LANE, "main", offsets(1, 20)) == whole.checksum
    assert far_end.sink.held(LANE, "main", offsets(11, 20)) == second[0].checksum


def test_the_same_token_again_changes_nothing(far_end: FarEnd) -> None:
    send, table = make(1, 10)
    far_end.sink.insert(send, table)
    far_end.sink.insert(evolve(send, attempt=2), table)
    assert far_end.physical() == [(offset, 1) for offset in range(1, 11)]


def test_a_new_send_adds_rows_and_replaces_the_old_ones(far_end: FarEnd) -> None:
    far_end.sink.insert(*make(1, 3, send=1))
    send, table = make(1, 3, send=2)
    far_end.sink.insert(send, table)
    assert far_end.sink.held(LANE, "main", offsets(1, 3)) == send.checksum
    assert {2} <= {sent for _, sent in far_end.physical()}
    assert far_end.sink.rows_of_send(LANE, "main", offsets(1, 3), 2) == 3


def test_a_token_is_forgotten_when_its_window_is_overrun(far_end: FarEnd) -> None:
    far_end.set_window(2)
    first = make(1, 1, send=1)
    far_end.sink.insert(*first)
    for number in (2, 3, 4, 5):
        far_end.sink.insert(*make(number, number, send=number))
    far_end.sink.insert(*first)
    assert [offset for offset, _ in far_end.physical()].count(1) == 2


def test_a_killed_server_is_unavailable_and_keeps_rows_tokens_and_ledger(far_end: FarEnd) -> None:
    send, table = make(1, 10)
    far_end.sink.insert(send, table)
    far_end.sink.record([ledger_row(1, 10)])
    before = far_end.sink.server().uptime_seconds
    far_end.kill()
    for call in (lambda: far_end.sink.insert(send, table), far_end.sink.server):
        with pytest.raises(SinkUnavailable):
            call()
    with pytest.raises(SinkUnavailable):
        far_end.sink.record([ledger_row(1, 10)])
    far_end.start()
    assert far_end.sink.server().uptime_seconds <= max(before, 5)
    far_end.sink.insert(evolve(send, attempt=3), table)
    assert far_end.physical() == [(offset, 1) for offset in range(1, 11)]
    assert far_end.ledger() == [(1, 10, "delivered")]


def test_a_refused_batch_leaves_no_row(far_end: FarEnd) -> None:
    far_end.refuse(7)
    with pytest.raises(SinkRejected) as raised:
        far_end.sink.insert(*make(1, 10))
    assert raised.value.code == 469
    assert far_end.physical() == []
    assert far_end.sink.rows_of_send(LANE, "main", offsets(1, 10), 1) == 0
    far_end.sink.insert(*make(1, 6, send=2))
    far_end.sink.insert(*make(8, 10, send=3))
    assert len(far_end.physical()) == 9


def test_a_throwing_view_leaves_the_rows_and_the_same_token_completes_them(far_end: FarEnd) -> None:
    send, table = make(1, 10)
    far_end.break_view(True)
    with pytest.raises(ReplicatorError) as raised:
        far_end.sink.insert(send, table)
    assert not isinstance(raised.value, OutcomeUnknown)
    assert far_end.sink.rows_of_send(LANE, "main", offsets(1, 10), 1) == 10
    far_end.break_view(False)
    far_end.sink.insert(evolve(send, attempt=2), table)
    assert len(far_end.physical()) == 10


def test_a_table_that_is_gone_is_misshapen(far_end: FarEnd) -> None:
    far_end.drop()
    with pytest.raises(SinkMisshapen):
        far_end.sink.insert(*make(1, 1))
    with pytest.raises(SinkMisshapen):
        far_end.sink.held(LANE, "main", offsets(1, 1))


def test_a_ledger_row_written_again_is_one(far_end: FarEnd) -> None:
    far_end.sink.record([ledger_row(1, 10), ledger_row(11, 20)])
    far_end.sink.record([ledger_row(1, 10), ledger_row(21, 21, status="parked")])
    assert far_end.ledger() == [(1, 10, "delivered"), (11, 20, "delivered"), (21, 21, "parked")]


def test_nothing_runs_when_nothing_was_sent(far_end: FarEnd) -> None:
    assert far_end.sink.running("main", "change_log", offsets(1, 10)) == 0


def test_only_the_fake_can_be_told_what_happens_between() -> None:
    """What the real engine cannot be made to do on demand, the fake must still do as the real one was seen to."""
    server = FakeClickHouse()
    send, table = make(1, 10)
    for fault, held in ((Fault.LOST_BEFORE, 0), (Fault.LOST_AFTER, 10)):
        server.meet = lambda table, send, fault=fault: fault
        with pytest.raises(OutcomeUnknown):
            server.insert(send, table)
        assert len(server.physical("change_log")) == held
    server = FakeClickHouse(meet=lambda table, send: Fault.DIES_AFTER_TOKEN)
    with pytest.raises(OutcomeUnknown):
        server.insert(send, table)
    server.start()
    server.meet = lambda table, send: None
    server.insert(send, table)
    assert server.physical("change_log") == []  # the token was on disk, the rows were not: the trap of design §7


def ledger_row(first: int, last: int, status: str = "delivered") -> LedgerRow:
    return LedgerRow(
        pipeline="main",
        table_name="change_log",
        first_offset=first,
        last_offset=last,
        row_count=last - first + 1,
        checksum="0",
        status=status,
        send_seq=1,
        timeline=1,
        instance_id="i",
        query_id="q",
        delivered_at=datetime(2026, 11, 23, 10, 0, 0),
    )

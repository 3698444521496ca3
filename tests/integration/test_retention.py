"""Retention: what is old enough goes, what anything still needs stays, and everything else works on without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve
from capture_room import wait_until
from pipeline_room import PipelineRoom
from service_room import ServiceRoom

from replicator.changelog import Pins
from replicator.deliver_requests import ask, redrive
from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import UsageError
from replicator.retention import Limits
from replicator.service_job import Jobs
from replicator.service_past import trace_answer
from replicator.service_verify import Task, Verification
from replicator.state_past import rows_as_of
from replicator.verify_report import VerifyRequest

TRADES = """
[[tables]]
name = "trades"
key = ["trade_id"]
[tables.columns]
trade_id = "VARCHAR"
n = "BIGINT"
"""
OLD = 600
ALL = 1_000


@pytest.fixture
def room(
    redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str, tmp_path: Path
) -> Iterator[ServiceRoom]:
    """A thousand changes of 250 keys; the first 600 are old, and nothing needs them any more."""
    room = ServiceRoom(
        directory=tmp_path, redis_url=redis_url, server=clickhouse_server, database=clickhouse_database, tables=TRADES
    ).start()
    for first in (1, OLD + 1):
        write(room, first, {1: OLD, OLD + 1: ALL}[first])
        room.wait_delivered({1: OLD, OLD + 1: ALL}[first])
    grow_old(room, OLD)
    verify(room)
    wait_until(lambda: all(lane.idle for lane in room.service.deliver.lanes.values()), "delivery at rest")
    room.client.xtrim("trades", maxlen=ALL - OLD, approximate=False)
    room.service.upkeep.wanted_through = ALL
    wait_until(lambda: room.rows("select 1 from fold_positions where applied_offset >= 600"), "the fold")
    room.service.keeping.retention.limits = Limits(age_days=7)
    yield room
    room.stop()
    room.client.close()


def write(room: ServiceRoom, first: int, last: int, **more: str) -> None:
    pipe = room.client.pipeline(transaction=False)
    for n in range(first, last + 1):
        pipe.xadd("trades", {"data": f'{{"trade_id":"T{n % 250}","n":{n}}}', "id": f"e{n}", **more})
    pipe.execute()


def grow_old(room: ServiceRoom, last: int) -> None:
    """As if logged a month, and delivered two hours, before the rest."""
    room.rows(f"update change_log set logged_at = logged_at - interval 30 day where log_offset <= {last}")
    room.rows(f"update sync_batches set delivered_at = delivered_at - interval 2 hour where last_offset <= {last}")


def verify(room: ServiceRoom, *, repair: bool = False) -> int:
    jobs, task = (
        Jobs(database=room.service.database, stop=room.service.stop),
        Task(request=VerifyRequest(), repair=repair),
    )
    mismatches: int = Verification(service=room.service, jobs=jobs).run(task)["mismatches"]
    return mismatches


def prune(room: ServiceRoom) -> int:
    return room.service.keeping.retention.turn()


def kept(room: ServiceRoom) -> tuple[int, int, int]:
    """(first, last, count) of the log."""
    return room.rows("select min(log_offset), max(log_offset), count(*) from change_log")[0]  # type: ignore[return-value]


WHOLE = (1, ALL, ALL)
PRUNED = (OLD + 1, ALL, ALL - OLD)


def test_what_is_old_goes_and_everything_works_on_without_it(room: ServiceRoom) -> None:
    current = "select trade_id, n, _offset from trades order by all"
    before = room.rows(current)
    assert prune(room) == OLD
    assert kept(room) == PRUNED and room.service.changelog.oldest == OLD + 1
    assert room.rows(current) == before and len(before) == 250
    assert room.rows("select count(*), min(_offset) from trades_log") == [(ALL - OLD, OLD + 1)]
    assert verify(room) == 0
    with pytest.raises(UsageError, match=f"begins at offset {OLD + 1}"):
        session = room.service.database.session()
        rows_as_of(session, room.service.catalog.history("trades"), as_of="10")
    with pytest.raises(UsageError, match="nothing is known") as unknown:
        trace_answer(room.service, "10", table=None)
    assert f"begins at offset {OLD + 1}" in unknown.value.hint
    assert prune(room) == 0 and room.service.keeping.retention.waits_for is None
    room.stop()
    room.start()
    assert room.service.changelog.oldest == OLD + 1
    write(room, ALL + 1, ALL + 50)
    room.wait_delivered(ALL + 50)
    assert verify(room) == 0
    assert int(room.asked("select count() from {d}.trades_log")[0][0]) == ALL + 50


def test_a_row_that_stands_twice_in_the_state_is_single_again_though_its_change_is_gone(room: ServiceRoom) -> None:
    grow_old(room, ALL)
    write(room, 1250, 1250)
    room.wait_delivered(ALL + 1)
    verify(room)
    room.client.xtrim("trades", maxlen=0, approximate=False)
    wait_until(lambda: prune(room) == 0 and kept(room) == (ALL + 1, ALL + 1, 1), "all but the last change gone")
    current = "select trade_id, n, _offset from trades order by all"
    before = room.rows(current)
    room.rows("insert into trades_state select * from trades_state where trade_id in ('T7', 'T8')")
    room.rows(
        "insert into trades_state by name select * replace (1 as n, 1 as _offset, 1 as _version) from trades_state where trade_id = 'T9'"
    )
    assert verify(room) == 3
    assert verify(room, repair=True) == 0
    assert room.rows(current) == before


def test_an_id_whose_change_is_gone_is_still_known(room: ServiceRoom) -> None:
    prune(room)
    room.stop()
    room.start()
    write(room, 7, 7)  # the same id and content as offset 7 had
    write(room, ALL + 1, ALL + 1)
    room.wait_logged(ALL + 1)
    assert kept(room)[1] == ALL + 1
    wait_until(lambda: room.service.progress.changes_repeated == 1, "the repeated one counted")


# ── what still needs a change keeps it ──

Need = Callable[[ServiceRoom], object]
FAILED = (
    "insert into failed_syncs (id, table_name, first_offset, last_offset, row_count, reason, attempts, "
    "first_failed_at, last_failed_at, status) values (1, 'trades', {first}, {last}, {rows}, '{reason}', 1, "
    "now()::timestamp, now()::timestamp, 'open')"
)
COPY = "insert into parked_changes select 1, * from change_log where log_offset between 101 and {last}"


def failed(reason: str, copied: int) -> Need:
    def need(room: ServiceRoom) -> None:
        room.rows(FAILED.format(first=101, last=110, rows=10, reason=reason))
        room.rows(COPY.format(last=100 + copied))

    return need


NEEDS: dict[str, tuple[Need, int]] = {
    "it is not delivered": (
        lambda room: (room.rows("update checkpoints set log_offset = 0"), room.rows("delete from sync_batches")),
        0,
    ),
    "it is not delivered (": (
        lambda room: room.rows("update sync_batches set delivered_at = null where last_offset = 600"),
        0,
    ),
    "it was delivered within the hour": (
        lambda room: room.rows(
            "update sync_batches set delivered_at = delivered_at + interval 90 minute where last_offset = 600"
        ),
        0,
    ),
    "no comparison has verified it": (lambda room: room.rows("delete from meta where key = 'verify_last'"), 0),
    "it is in an open failed sync": (failed("outage", 10), 100),
    "it is in an open failed sync (": (failed("rejected", 9), 100),
    "the current rows of trades": (lambda room: room.rows("update fold_positions set applied_offset = 200"), 200),
}
TABLES = (
    "change_log", "checkpoints", "sync_batches", "meta", "failed_syncs", "parked_changes", "fold_positions"
)  # fmt: skip


def test_what_something_in_the_file_still_needs_stays(room: ServiceRoom) -> None:
    room.service.upkeep.may_grow = lambda: False  # folds nothing
    retention = room.service.keeping.retention
    for table in TABLES:
        room.rows(f"create table was_{table} as from {table}")
    for why, (need, last) in NEEDS.items():
        need(room)
        assert (prune(room), kept(room)[0]) == (last, last + 1), why
        assert str(retention.waits_for).startswith(why)
        for table in TABLES:
            room.rows(f"delete from {table}")
            room.rows(f"insert into {table} from was_{table}")
        room.service.changelog.oldest = 1
    assert prune(room) == OLD


def test_what_redis_still_holds_stays_and_is_recognised_when_it_is_read_again(room: ServiceRoom) -> None:
    room.client.delete("trades")
    write(room, 1, 1)
    oldest = room.rows("select entry_id from change_log where log_offset = 301")[0][0]
    source = room.service.source
    about = evolve(source.describe("trades"), first_entry_id=oldest)
    room.service.keeping.retention.source = type("Holds", (), {"describe": lambda _, stream: about})()
    milliseconds = oldest.partition("-")[0]
    same = f"select min(log_offset) from change_log where split_part(entry_id, '-', 1) = '{milliseconds}'"
    first = room.rows(same)[0][0]
    assert prune(room) == first - 1
    assert "Redis" in str(room.service.keeping.retention.waits_for)


def test_nothing_goes_while_redis_does_not_answer(room: ServiceRoom, redis_server: object) -> None:
    redis_server.kill()  # type: ignore[attr-defined]
    room.service.keeping.retention.may_delete = lambda: None
    try:
        assert prune(room) == 0 and kept(room) == WHOLE
        assert "does not answer" in str(room.service.keeping.retention.waits_for)
    finally:
        redis_server.start()  # type: ignore[attr-defined]


def test_nothing_goes_while_somebody_reads_the_log_in_steps(room: ServiceRoom) -> None:
    with room.service.changelog.pins.hold("verify"):
        assert prune(room) == 0
        assert room.service.keeping.retention.waits_for == "verify reads the log"
    assert prune(room) == OLD


def test_a_refused_row_is_delivered_from_its_copy_when_its_change_is_gone(room: ServiceRoom) -> None:
    room.service.reconciler.compare_seconds = 1e9
    room.asked("delete from {d}.trades_log where _offset between 101 and 110")
    failed("rejected", 10)(room)
    wait_until(lambda: prune(room) == OLD, "the prune, though a comparison of before may still be under way")
    deliver, ledger = room.service.deliver, room.service.ledger
    session = room.service.database.session()
    [parked] = ledger.open_failures(session)
    session.close()
    ask(deliver, lambda: redrive(deliver, parked, requested_by="test"))
    wait_until(lambda: room.rows("select 1 from failed_syncs where status = 'resolved'"), "it resolved")
    held = room.asked("select _offset, n from {d}.trades_log final where _offset between 101 and 110 order by 1")
    assert held == [(str(n), str(n)) for n in range(101, 111)]


def test_a_table_no_longer_declared_is_folded_before_its_changes_go(room: ServiceRoom) -> None:
    current = room.rows("select trade_id, n from trades order by 1")
    room.rows("update fold_positions set applied_offset = 0")
    room.rows("delete from trades_state")
    room.service.catalog.current = {}
    assert prune(room) == OLD
    assert room.rows("select trade_id, n from trades order by 1") == current


# ── by size ──


def test_the_file_is_brought_below_its_limit_and_no_further(room: ServiceRoom) -> None:
    retention = room.service.keeping.retention
    retention.limits = Limits(bytes=1)
    assert prune(room) == OLD  # all that may go: the rest was delivered within the hour
    assert "within the hour" in str(retention.waits_for)
    retention.limits = Limits(bytes=10**12)
    for _ in range(10):
        assert prune(room) == 0
    assert kept(room) == PRUNED and retention.waits_for is None


def test_at_least_the_last_change_stays(room: ServiceRoom) -> None:
    room.rows("update change_log set logged_at = logged_at - interval 30 day")
    room.rows("update sync_batches set delivered_at = timestamp '2020-01-01'")
    room.rows("insert into sync_batches by name select * replace ('x' as batch_id, 'other' as table_name, "
              "now()::timestamp as delivered_at, 1000 as first_offset) from sync_batches limit 1")  # fmt: skip
    room.client.delete("trades")
    prune(room)
    assert kept(room) == (ALL, ALL, 1)


# ── a kill in the middle ──


def test_a_kill_inside_leaves_the_log_as_it_was_and_the_next_turn_does_it(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    room = PipelineRoom(
        directory=tmp_path,
        redis_url=redis_url,
        clickhouse=clickhouse_server,
        database=clickhouse_database,
        endpoint=clickhouse_server.endpoint,
        tables="[retention]\nmax_age_days = 7\n[verify]\ninterval_sec = 0\n",
    )
    with room.running() as service:
        for _ in range(2):
            room.add(100)
            room.wait_delivered(service)
        room.source.xtrim("trades", maxlen=1, approximate=False)
        session = service.database.session()
        session.execute("update change_log set logged_at = logged_at - interval 30 day where log_offset <= 100")
        session.execute(
            "update sync_batches set delivered_at = delivered_at - interval 2 hour where last_offset <= 100"
        )
        session.close()
    child = room.child("retention.inside=kill")
    child.join(60)
    assert child.exitcode == -9
    with room.file() as session:
        assert session.rows("select min(log_offset), count(*) from change_log") == [(1, 200)]
    with room.running() as service:
        wait_until(lambda: service.keeping.retention.changes_deleted, "the log pruned", 30)
        assert service.changelog.oldest == 101
    with room.file() as session:
        assert session.rows("select min(log_offset), count(*) from change_log") == [(101, 100)]


def test_pins_count_those_who_hold_them() -> None:
    pins = Pins()
    with pins.hold("a"):
        with pins.hold("b"), pins.unless_held() as holder:
            assert holder == "a"
        with pins.unless_held() as holder:
            assert holder == "a"
    with pins.unless_held() as holder:
        assert holder is None

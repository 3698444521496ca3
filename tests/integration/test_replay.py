"""Replay: delivered changes sent again beside the live stream; stale rows never win, checkpoints do not move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from verify_room import VerifyRoom, agreed, mended, shared_room, unchanged, wait_until

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.errors import SinkMisshapen, UsageError
from replicator.model import OffsetRange
from replicator.pieces import without
from replicator.replay_plan import ReplayRequest
from replicator.service_job import REPLAY, Cancelled, Jobs
from replicator.service_replay import Replaying, ReplayTask


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, _clickhouse: ClickHouse, _valkey: Valkey) -> Iterator[VerifyRoom]:
    """One filled pipeline; each test leaves it mended."""
    with shared_room(tmp_path_factory.mktemp("replay"), _valkey.start(), _clickhouse.start()) as room:
        yield room


@pytest.fixture
def room(shared: VerifyRoom) -> VerifyRoom:
    return shared.clean()


def replaying(room: VerifyRoom) -> Replaying:
    return Replaying(service=room.service, jobs=Jobs(database=room.service.database, stop=room.service.stop))


def replay(room: VerifyRoom, first: str = "1", *, dry_run: bool = False, **request: Any) -> dict[str, Any]:
    task = ReplayTask(request=ReplayRequest(first=first, **request), dry_run=dry_run, actor="test")
    return replaying(room).run(task)


def records(room: VerifyRoom) -> list[list[tuple[Any, ...]]]:
    """What a replay must leave alone."""
    tables = (
        "select * from checkpoints order by 1",
        "select * from sync_batches order by 1",
        "select * from failed_syncs",
    )
    return [room.session.rows(sql) for sql in tables]  # fmt: skip


def ledger(room: VerifyRoom) -> list[Any]:
    return list(room.service.sink.rows("select * from replicator_batches final order by 2, 3"))


def test_everything_is_sent_again_and_no_stale_row_wins(room: VerifyRoom) -> None:
    room.sql("system stop merges trades_log")
    try:
        before, recorded, current = records(room), ledger(room), room.both()
        sends = room.service.sink.scalar("select max(_send) from trades_log")
        done = replay(room)
        assert done["sent_rows"] == done["rows"] == room.session.rows("select count(*) from change_log")[0][0]
        assert room.service.sink.scalar("select countIf(_send > {s:UInt64}) from trades_log", {"s": sends}) == sum(
            t["rows"] for t in done["tables"] if t["table"] == "trades"
        )
        assert room.both() == current and current[0] == current[1]
        assert (records(room), ledger(room)) == (before, recorded)
        agreed(room)
    finally:
        room.sql("system start merges trades_log")


def test_old_changes_sent_over_newer_ones_lose(room: VerifyRoom) -> None:
    """The first half of the log over a state that only the second half had written."""
    half = room.service.changelog.head // 2
    room.sql("truncate table trades_state")
    replay(room, str(half + 1), tables=("trades",))
    newest = room.both()[1]
    replay(room, "1", last=str(half), tables=("trades",))
    ours, theirs = room.both()
    assert theirs == ours and {row[0] for row in newest} <= {row[0] for row in theirs}
    agreed(room, "trades")


def test_it_goes_on_beside_the_live_stream(room: VerifyRoom) -> None:
    jobs, rate = replaying(room), room.service.changelog.head // 10  # ten seconds: longer than the stream needs
    job = jobs.start(ReplayTask(request=ReplayRequest(first="1", rate=rate), actor="test"))
    room.produce(room.flow(500))
    room.wait_delivered()
    assert job.state == "running", "the live stream did not wait for it"
    wait_until(lambda: job.state != "running", "the replay ends")
    assert job.error is None
    ours, theirs = room.both()
    assert ours == theirs
    mended(room)


def test_a_dry_run_says_what_there_is_and_changes_nothing(room: VerifyRoom) -> None:
    room.sql("delete from trades_log where _offset <= 100")
    with unchanged(room.service):
        plan = replay(room, "1", last="1000", tables=("trades", "positions"), dry_run=True)
    by_table = {t["table"]: t for t in plan["tables"]}
    counted = dict(room.session.rows("select table_name, count(*) from change_log where log_offset <= 1000 group by 1"))
    assert plan["safe"] and {name: t["rows"] for name, t in by_table.items()} == {
        name: counted[name] for name in ("trades", "positions")
    }
    [(lost,)] = room.session.rows("select count(*) from change_log where table_name = 'trades' and log_offset <= 100")
    assert by_table["trades"]["rows_in_sink"] == counted["trades"] - lost
    assert by_table["trades"]["bytes"] > counted["trades"] * 20 and by_table["trades"]["batches"] >= 1
    replay(room, "1", last="100", tables=("trades",))
    agreed(room, "trades")
    assert room.session.rows("select action, subject from operator_actions order by id desc limit 2") == [
        ("replay", "replay " + str(room.session.rows("select max(id) from replays")[0][0])), ("replay", "trades"),
    ]  # fmt: skip


def test_a_table_of_another_shape_is_unsafe_and_nothing_is_sent(room: VerifyRoom) -> None:
    room.sql("alter table positions_log modify column amount Nullable(Decimal(20, 6))")
    try:
        plan = replay(room, dry_run=True)
        assert not plan["safe"]
        assert [t["conflicts"] for t in plan["tables"] if t["table"] == "positions"] == [
            ["positions_log: column 'amount' is Nullable(Decimal(20, 6)), not Nullable(Decimal(20, 4))"]
        ]
        with pytest.raises(SinkMisshapen, match="amount"):
            replay(room)
    finally:
        room.sql("alter table positions_log modify column amount Nullable(Decimal(20, 4))")


def test_what_was_discarded_stays_out(room: VerifyRoom) -> None:
    low, high = room.offsets("trades", 2)
    room.log_sql(
        "insert into failed_syncs (table_name, first_offset, last_offset, row_count, reason, attempts, first_failed_at, "
        f"last_failed_at, status) values ('trades', {low}, {high}, 1, 'rejected', 1, now()::timestamp, now()::timestamp, 'discarded')"
    )
    try:
        room.sql(f"delete from trades_log where _offset between {low} and {high}")
        done = replay(room, tables=("trades",))
        [(out,)] = room.session.rows(
            f"select count(*) from change_log where table_name = 'trades' and log_offset between {low} and {high}"
        )
        assert done["tables"][0]["rows_left_out"] == out
        assert room.service.sink.scalar(f"select count() from trades_log where _offset between {low} and {high}") == 0
    finally:
        room.log_sql("delete from failed_syncs")
    mended(room, "trades")


def test_what_makes_no_sense_is_refused(shared: VerifyRoom) -> None:
    for request, said in (
        ({"first": "never"}, "neither an offset nor an instant"),
        ({"first": "2999-01-01T00:00:00Z"}, "nothing was logged from"),
        ({"first": "5", "last": "4"}, "there is nothing"),
        ({"first": "1", "tables": ("nowhere",)}, "there is no table nowhere"),
    ):
        with pytest.raises(UsageError, match=said):
            replay(shared, **request)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no replay to go on with"):
        shared.log_sql("update replays set status = 'abandoned' where status = 'open'")
        replaying(shared).run(ReplayTask(request=None, actor="test"))


def test_from_an_instant_on(shared: VerifyRoom) -> None:
    [(at, first, head)] = shared.session.rows(
        "select logged_at, min(log_offset), (select max(log_offset) from change_log) from change_log "
        "group by logged_at order by logged_at desc limit 1"
    )
    plan = replay(shared, at.isoformat() + "Z", dry_run=True)
    assert {t["first_offset"] for t in plan["tables"]} == {first}
    assert plan["rows"] == head - first + 1


def test_one_that_was_cancelled_goes_on_where_it_was(room: VerifyRoom) -> None:
    jobs = replaying(room)
    job = jobs.start(ReplayTask(request=ReplayRequest(first="1", tables=("trades",), rate=1), actor="test"))
    wait_until(lambda: job.progress.rows > 0, "the first batch is sent")
    with pytest.raises(UsageError, match="a replay is running already"):
        jobs.start(ReplayTask(request=ReplayRequest(first="1"), actor="test"))
    jobs.jobs.cancel(REPLAY, job.id)
    wait_until(lambda: job.state == "cancelled", "it ends")
    assert isinstance(job.error, Cancelled)
    [(rows, sent)] = room.session.rows("select row_count, sent_rows from replays where status = 'open'")
    room.log_sql("update replays set rate = null where status = 'open'")
    done = jobs.run(ReplayTask(request=None, actor="test"))
    assert done["sent_rows"] == rows - sent
    agreed(room, "trades")


@pytest.mark.parametrize(
    ("known", "left"),
    [
        ([], [(10, 20)]),
        ([(1, 9), (21, 30)], [(10, 20)]),
        ([(1, 12), (15, 15), (20, 40)], [(13, 14), (16, 19)]),
        ([(10, 20)], []),
        ([(5, 15), (12, 17)], [(18, 20)]),
    ],
)
def test_known_ranges_are_cut_out(known: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
    ranges = [OffsetRange(first=a, last=b) for a, b in known]
    assert [(r.first, r.last) for r in without(OffsetRange(first=10, last=20), ranges)] == left

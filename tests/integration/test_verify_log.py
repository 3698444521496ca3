"""Faults planted in DuckDB and in the records of either side; and what is known, or asked for, and no fault."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from attrs import define, field
from plants import plant, seed
from verify_room import VerifyRoom, agreed, largest_batch, listed, mended, of, shared_room, unchanged, wait_until

from replicator.compare import Side
from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.service_job import Job, Jobs
from replicator.service_verify import Task, Verification
from replicator.state import fold
from replicator.verify import Progress
from replicator.verify_report import Invariant, VerifyRequest


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, _clickhouse: ClickHouse, _valkey: Valkey) -> Iterator[VerifyRoom]:
    """One filled pipeline; each test leaves it mended."""
    with shared_room(tmp_path_factory.mktemp("verify"), _valkey.start(), _clickhouse.start()) as room:
        yield room


@pytest.fixture
def room(shared: VerifyRoom) -> VerifyRoom:
    """Both sides agree; the test mends what it breaks."""
    return shared.clean()


# ── in DuckDB ──


def test_a_logged_change_that_was_altered_is_the_logs_fault_and_comes_back_from_the_sink(room: VerifyRoom) -> None:
    before = room.whole_log()
    [offset] = room.offsets("trades", 1)
    room.log_sql(
        "update change_log set payload = regexp_replace(payload, '\"quantity\": *[0-9]+', '\"quantity\":1') "
        f"where log_offset = {offset}"
    )
    assert room.faults(mended(room, "trades")) == {("trades", "log", "different"): [offset]}
    assert room.whole_log() == before


def test_a_payload_that_nothing_can_read_any_more_is_the_logs_fault(room: VerifyRoom) -> None:
    before = room.whole_log()
    [offset] = room.offsets("trades", 1)
    room.log_sql(f"update change_log set payload = '{{\"trade' where log_offset = {offset}")
    assert room.faults(mended(room, "trades")) == {("trades", "log", "different"): [offset]}
    assert room.whole_log() == before


def test_changes_deleted_from_the_log_come_back_from_the_sink(room: VerifyRoom) -> None:
    before = room.whole_log()
    offsets = {table: room.offsets(table, 4) for table in ("trades", "positions", "notes")}
    room.log_sql(
        f"delete from change_log where log_offset in ({listed([at for some in offsets.values() for at in some])})"
    )
    report = mended(room)
    assert room.faults(report) == {
        ("trades", "log", "missing"): offsets["trades"],
        ("positions", "log", "missing"): offsets["positions"],
        ("change_log", "log", "missing"): offsets["notes"],
    }
    assert [p.invariant for p in report.problems] == [Invariant.OFFSETS]
    assert room.whole_log() == before


def test_changes_doubled_in_the_log_are_single_again(room: VerifyRoom) -> None:
    before = room.whole_log()
    offsets = room.offsets("trades", 3)
    room.log_sql(f"insert into change_log select * from change_log where log_offset in ({listed(offsets)})")
    report = mended(room)
    assert room.faults(report) == {("trades", "log", "doubled"): offsets}
    assert [p.invariant for p in report.problems] == [Invariant.OFFSETS]
    assert room.whole_log() == before


def test_changes_doubled_in_the_log_and_folded_leave_one_row_of_each_key(room: VerifyRoom) -> None:
    """A fold between the damage and its repair takes both copies into T_state."""
    offsets = [at for (at,) in room.session.rows("select _offset from trades order by 1 desc limit 3")]
    room.service.upkeep.turn()
    room.log_sql("update fold_positions set applied_offset = 0 where table_name = 'trades'")
    room.log_sql(f"insert into change_log select * from change_log where log_offset in ({listed(offsets)})")
    fold(room.session, room.service.catalog.current["trades"], room.service.changelog.head)
    doubled = "select trade_id from trades_state group by 1 having count(*) > 1 order by 1"
    keys = [key for (key,) in room.session.rows(doubled)]
    assert len(keys) == 3
    report = mended(room)
    assert sorted((s.key, str(s.side), str(s.kind)) for s in of(report, "trades").state) == [
        (key, "log", "doubled") for key in keys
    ]
    assert room.session.rows(doubled) == []


def test_a_change_moved_to_another_table_comes_home(room: VerifyRoom) -> None:
    before = room.whole_log()
    [offset] = room.offsets("trades", 1)
    room.log_sql(f"update change_log set table_name = 'positions' where log_offset = {offset}")
    found = room.faults(mended(room, "trades", "positions"))
    assert found[("trades", "log", "missing")] == [offset]
    assert room.whole_log() == before


def test_both_sides_altered_in_one_batch_are_told_apart_row_by_row(room: VerifyRoom) -> None:
    before = room.whole_log()
    ours, theirs, gone = room.offsets("trades", 3)
    room.log_sql(f"update change_log set event_id = 'x' where log_offset = {ours}")
    room.sql(f"alter table trades_log update quantity = 0 where _offset = {theirs}")
    room.sql(f"delete from trades_log where _offset = {gone}")
    assert room.faults(mended(room, "trades")) == {
        ("trades", "log", "different"): [ours],
        ("trades", "sink", "different"): [theirs],
        ("trades", "sink", "missing"): [gone],
    }
    assert room.whole_log() == before


def test_the_same_row_altered_on_both_sides_is_said_and_nothing_is_sent_over_anything(room: VerifyRoom) -> None:
    [offset] = room.offsets("trades", 1)
    room.log_sql(f"update change_log set event_id = event_id || 'x' where log_offset = {offset}")
    room.sql(f"alter table trades_log update quantity = 0 where _offset = {offset}")
    report = room.repair(tables=("trades",))
    assert room.faults(report.before) == {("trades", "unknown", "different"): [offset]}
    assert (report.sent_rows, report.log_rows) == (0, 0)
    assert "neither side" in report.plan.left[0]
    room.log_sql(f"update change_log set event_id = rtrim(event_id, 'x') where log_offset = {offset}")
    mended(room, "trades")


def test_a_row_of_duckdbs_own_state_that_differs_is_rebuilt_from_the_log(room: VerifyRoom) -> None:
    room.service.upkeep.turn()
    fold(room.session, room.service.catalog.current["trades"], room.service.changelog.head)
    key = (room.session.row("select trade_id from trades_state order by 1 limit 1 offset 5") or ("",))[0]
    gone = (room.session.row("select trade_id from trades_state order by 1 limit 1 offset 6") or ("",))[0]
    room.log_sql(f"update trades_state set quantity = quantity + 1 where trade_id = '{key}'")
    room.log_sql(f"delete from trades_state where trade_id = '{gone}'")
    found = {(s.key, str(s.side), str(s.kind)) for s in of(mended(room, "trades"), "trades").state}
    assert found == {(key, "log", "different"), (gone, "log", "missing")}


# ── records ──


def test_a_ledger_row_that_is_gone_is_written_again(room: VerifyRoom) -> None:
    room.sql("delete from replicator_batches where table_name = 'trades'")
    assert {p.invariant for p in mended(room).problems} == {Invariant.LEDGER_WHOLE}


def test_a_lying_ledger_is_put_right(room: VerifyRoom) -> None:
    room.sql(
        "alter table replicator_batches update checksum = '1:0:0' where table_name = 'trades' and first_offset = 1"
    )
    room.sql(
        "insert into replicator_batches select * replace(3 as first_offset, 5 as last_offset) "
        "from (select * from replicator_batches final where table_name = 'positions' limit 1)"
    )
    problems = mended(room).problems
    assert {p.invariant for p in problems} == {Invariant.LEDGER_TRUE}
    assert len(problems) == 2


def test_a_batchs_record_that_lies_is_corrected_where_everybody_else_agrees(room: VerifyRoom) -> None:
    before = room.session.rows("select * from sync_batches order by table_name, first_offset")
    lie = f"{1:d}:{1:016x}:{1:016x}"
    room.log_sql(f"update sync_batches set checksum = '{lie}' where table_name = 'trades' and first_offset = 1")
    report = mended(room)
    assert [(p.invariant, p.side) for p in of(report, "trades").problems] == [(Invariant.RECORD, Side.LOG)]
    assert room.session.rows("select * from sync_batches order by table_name, first_offset") == before


def test_a_batch_without_a_record_is_sent_and_recorded(room: VerifyRoom) -> None:
    sql = "select first_offset from sync_batches where table_name = 'trades' order by 1 limit 1 offset 1"
    [(first,)] = room.session.rows(sql)
    room.log_sql(f"delete from sync_batches where table_name = 'trades' and first_offset = {first}")
    assert Invariant.COVERED in {p.invariant for p in mended(room).problems}


def test_a_checkpoint_that_passed_changes_never_sent_is_lowered(room: VerifyRoom) -> None:
    room.service.controls.pause("deliver", actor="test")
    room.produce(room.flow(20))
    wait_until(lambda: room.service.changelog.head >= room.logged, "it in the log")
    head = room.service.changelog.head
    room.log_sql(f"update checkpoints set log_offset = {head} where table_name = 'trades'")
    report = room.repair()
    assert Invariant.CHECKPOINT in {p.invariant for p in report.before.problems}
    room.service.controls.resume("deliver", actor="test")
    room.wait_delivered()
    agreed(room)


# ── on the schedule ──


@define
class Resting(Jobs):
    """Jobs that note how long they are to rest, and do not."""

    rests: list[float] = field(factory=list)

    def rest(self, job: Job, seconds: float) -> None:
        self.rests.append(seconds)


@pytest.mark.parametrize("paced", [True, False])
def test_on_schedule_each_piece_of_work_is_followed_by_as_long_a_rest(room: VerifyRoom, *, paced: bool) -> None:
    jobs = Resting(database=room.service.database, stop=room.service.stop)
    ticks = itertools.count(step=60)

    def watch(progress: Progress) -> None:
        progress.clock = lambda: float(next(ticks))  # from the second piece on each takes a minute

    Verification(service=room.service, jobs=jobs).run(Task(request=VerifyRequest(), paced=paced), watch)
    assert len(jobs.rests) > 3 and set(jobs.rests[1:]) == {60.0 if paced else 0.0}


def test_what_the_schedule_runs_is_paced(room: VerifyRoom) -> None:
    jobs = Resting(database=room.service.database, stop=room.service.stop)
    assert Verification(service=room.service, jobs=jobs)._scheduled()
    assert jobs.rests and all(jobs.rests)


# ── what is known ──


def test_a_dry_run_of_a_repair_changes_nothing_on_either_side(room: VerifyRoom) -> None:
    planted = plant(room, random.Random(seed()))
    with unchanged(room.service):
        report = room.repair(dry_run=True)
    [trades] = [table for table in report.as_json()["plan"]["tables"] if table["table"] == "trades"]
    wrong = planted["trades", "sink", "missing"] | planted["trades", "sink", "different"]
    assert (trades["send_again"], trades["fetch_into_log"], trades["remove_from_log"]) == (len(wrong), 3, 3)
    mended(room)


def test_discarded_ranges_are_no_mismatches(room: VerifyRoom) -> None:
    first, last = largest_batch(room)
    room.sql(f"delete from trades_log where _offset between {first} and {last}")
    room.log_sql(
        "insert into failed_syncs (table_name, first_offset, last_offset, row_count, reason, attempts, first_failed_at, "
        f"last_failed_at, status) values ('trades', {first}, {last}, 1, 'rejected', 1, now(), now(), 'discarded')"
    )
    report = room.verify()  # the declared sums, T and the ledger too
    assert report.mismatches == 0, report.as_json()
    room.log_sql("update failed_syncs set status = 'resolved'")
    found = mended(room, "trades")
    assert room.faults(found) and of(found, "trades").breaks


def test_a_lost_range_inside_a_batch_does_not_hide_the_rest_of_it(room: VerifyRoom) -> None:
    first, second = room.offsets("trades", 2)
    room.log_sql(
        "insert into failed_syncs (table_name, first_offset, last_offset, row_count, reason, attempts, first_failed_at, "
        f"last_failed_at, status) values ('trades', {first}, {first}, 1, 'lost', 1, now(), now(), 'open')"
    )
    room.sql(f"delete from trades_log where _offset in ({first}, {second})")
    assert room.faults(room.verify(tables=("trades",))) == {("trades", "sink", "missing"): [second]}
    room.log_sql("update failed_syncs set status = 'resolved'")
    mended(room, "trades")


def test_only_the_range_asked_for_is_reported(room: VerifyRoom) -> None:
    first, second = room.offsets("trades", 2)
    room.sql(f"delete from trades_log where _offset in ({first}, {second})")
    report = room.verify(tables=("trades",), first=second)
    assert room.faults(report) == {("trades", "sink", "missing"): [second]}
    mended(room, "trades")


def test_declared_sums_that_break_are_named_by_group(room: VerifyRoom) -> None:
    [(offset, venue)] = room.service.sink.rows("select _offset, venue from trades order by trade_id limit 1 offset 9")
    room.sql(f"alter table trades_log update quantity = quantity + 5 where _offset = {offset}")
    [found] = of(mended(room, "trades"), "trades").breaks
    assert (found.group, found.column) == ({"venue": venue}, "quantity")
    assert int(str(found.sink)) == int(str(found.log)) + 5


def test_what_a_part_of_the_offsets_leaves_out_is_said_and_its_sums_are_compared(room: VerifyRoom) -> None:
    first, last = largest_batch(room)
    inside, outside = first + (last - first) // 2, room.offsets("trades", 1)[0]
    if outside >= inside:
        outside = room.session.rows("select min(log_offset) from change_log where table_name = 'trades' and op = 'u'")[
            0
        ][0]
    [(at,)] = room.session.rows(
        "select max(log_offset) from change_log where table_name = 'trades' and op = 'u' and log_offset "
        f"between {inside} and {last}"
    )
    room.sql(f"alter table trades_log update quantity = quantity + 5 where _offset in ({at}, {outside})")
    report = room.verify(tables=("trades",), first=inside, last=last)
    assert room.faults(report) == {("trades", "sink", "different"): [at]}
    [found] = of(report, "trades").breaks
    assert int(str(found.sink)) == int(str(found.log)) + 5
    whole, state, sums = (
        [n for n in report.as_json()["notes"] if words in n] for words in ("compared whole", "(T)", "sums")
    )
    assert f"{first}..{last}" in whole[0] and f"{inside}..{last}" in sums[0] and state
    assert of(report, "trades").keys is None
    assert mended(room, "trades").as_json()["notes"] == [
        "only some tables were asked for: the ledger, checkpoints and gapless offsets were not compared"
    ]


def test_sums_that_no_repair_can_mend_are_said_to_be_left_with_what_to_do(room: VerifyRoom) -> None:
    """Without a look at the log's rows, whose values somebody has altered."""
    before = room.whole_log()
    [(offset,)] = room.session.rows("select _offset from trades order by trade_id limit 1 offset 9")
    room.log_sql(
        "update change_log set payload = regexp_replace(payload, '\"quantity\": *[0-9]+', '\"quantity\":1') "
        f"where log_offset = {offset}"
    )
    report = room.repair(tables=("trades",), reread_log=False, state=False)
    assert of(report.before, "trades").breaks and report.rounds == 0 and report.mismatches
    assert "trades: 1 of its declared sums differ" in report.plan.left[0] and "--quick" in report.plan.left[0]
    mended(room, "trades")
    assert room.whole_log() == before


def test_declared_sums_leave_out_what_is_parked_in_pieces(room: VerifyRoom) -> None:
    """Of single rows apart and side by side, among them a delete and rows that are not their key's newest."""
    parked = [*room.offsets("trades", 40), *room.offsets("trades", 3, op="d")]
    parked += [at + 1 for at in parked[:5]]
    room.sql(f"delete from trades_log where _offset in ({listed(parked)})")
    assert of(room.verify(tables=("trades",)), "trades").breaks
    rows = ", ".join(f"('trades', {at}, {at}, 1, 'rejected', 1, now(), now(), 'open')" for at in parked)
    room.log_sql(
        "insert into failed_syncs (table_name, first_offset, last_offset, row_count, reason, attempts, first_failed_at, "
        f"last_failed_at, status) values {rows}"
    )
    report = room.verify(tables=("trades",))
    assert report.mismatches == 0, report.as_json()
    room.log_sql("update failed_syncs set status = 'resolved'")
    mended(room, "trades")


def test_thousands_of_parked_rows_are_known_as_a_few_are(room: VerifyRoom) -> None:
    """More than ClickHouse's parser takes when each is named in a query."""
    room.sql("delete from trades_log where _offset % 2 = 1")
    room.log_sql(
        "insert into failed_syncs (table_name, first_offset, last_offset, row_count, reason, attempts, first_failed_at, "
        "last_failed_at, status) select 'trades', 2 * i + 1, 2 * i + 1, 1, 'rejected', 1, now(), now(), 'open' "
        "from range(12000) as odd(i)"
    )
    report = room.verify(tables=("trades",))
    assert report.mismatches == 0, report.as_json()
    room.log_sql("update failed_syncs set status = 'resolved'")
    mended(room, "trades")


def test_the_quick_way_compares_the_sink_with_what_was_frozen(room: VerifyRoom) -> None:
    [offset] = room.offsets("trades", 1)
    room.sql(f"delete from trades_log where _offset = {offset}")
    report = room.verify(tables=("trades",), reread_log=False)
    assert room.faults(report) == {("trades", "sink", "missing"): [offset]}
    mended(room, "trades")

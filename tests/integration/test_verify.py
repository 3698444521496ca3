"""Planted faults, in ClickHouse and in DuckDB: each is found, classed right and mended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from verify_room import VerifyRoom, wait_until

from replicator.compare import Side
from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.errors import UsageError
from replicator.verify_report import Invariant, TableResult, VerifyReport


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, _clickhouse: ClickHouse, _valkey: Valkey) -> Iterator[VerifyRoom]:
    """One filled pipeline; each test leaves it mended."""
    server, valkey = _clickhouse.start(), _valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    server.execute("create database verify_shared")
    with VerifyRoom.open(tmp_path_factory.mktemp("verify"), valkey.url, server, "verify_shared") as room:
        room.fill(3000)
        yield room
    server.start().execute("drop database if exists verify_shared sync")


@pytest.fixture
def room(shared: VerifyRoom) -> VerifyRoom:
    """Both sides agree; the test mends what it breaks."""
    if shared.dirty:
        shared.repair()
    shared.dirty = True
    return shared


def mended(room: VerifyRoom) -> None:
    """Repair, and see that both sides are as they were meant to be."""
    report = room.repair()
    assert report.mismatches == 0, report.as_json()
    ours, theirs = room.both()
    assert ours == theirs
    room.dirty = False


def of(report: VerifyReport, name: str) -> TableResult:
    return next(table for table in report.tables if table.table == name)


def largest_batch(room: VerifyRoom) -> tuple[int, int]:
    sql = (
        "select first_offset, last_offset from sync_batches where table_name = 'trades' order by row_count desc limit 1"
    )
    first, last = room.session.row(sql) or (0, 0)
    return first, last


def listed(offsets: list[int]) -> str:
    return ", ".join(map(str, offsets))


def test_what_agrees_has_no_mismatches(room: VerifyRoom) -> None:
    report = room.verify()
    assert report.rows == 3000
    keys = {table.table: table.keys is not None for table in report.tables}
    assert keys == {"trades": True, "positions": True, "change_log": False}


def test_a_table_that_does_not_exist_is_refused(room: VerifyRoom) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        room.verify(tables=("nowhere",))


# ── in ClickHouse ──


def test_deleted_rows_are_missing(room: VerifyRoom) -> None:
    offsets = {table: room.offsets(table, 5) for table in ("trades", "positions", "notes")}
    room.sql(f"delete from trades_log where _offset in ({listed(offsets['trades'])})")
    room.sql(f"delete from positions_log where _offset in ({listed(offsets['positions'])})")
    room.sql(f"delete from change_log where log_offset in ({listed(offsets['notes'])})")
    assert room.faults(room.verify()) == {
        ("trades", "sink", "missing"): offsets["trades"],
        ("positions", "sink", "missing"): offsets["positions"],
        ("change_log", "sink", "missing"): offsets["notes"],
    }
    mended(room)


ALTERED = {
    "quantity": "quantity + 1",
    "price": "price + toDecimal64('0.000001', 6)",
    "venue": "NULL",
    "executed_at": "executed_at + toIntervalMicrosecond(1)",
    "_op": "'c'",
    "_event_id": "NULL",
    "_entry_id": "'9-9'",
    "_schema_version": "2",
}


def test_a_value_altered_in_one_column_is_different_and_named(room: VerifyRoom) -> None:
    """Counts are equal all the while."""
    offsets = dict(zip(ALTERED, room.offsets("trades", len(ALTERED)), strict=True))
    updates = [f"{c} = if(_offset = {offsets[c]}, {to}, {c})" for c, to in ALTERED.items()]
    room.sql(f"alter table trades_log update {', '.join(updates)} where _offset in ({listed(list(offsets.values()))})")
    [weighed] = room.offsets("positions", 1)
    next_float = "reinterpretAsFloat64(reinterpretAsUInt64(assumeNotNull(weight)) + 1)"
    room.sql(f"alter table positions_log update weight = {next_float} where _offset = {weighed}")
    report = room.verify()
    assert room.faults(report) == {
        ("trades", "sink", "different"): sorted(offsets.values()),
        ("positions", "sink", "different"): [weighed],
    }
    named = {m.offset: list(m.columns) for table in report.tables for m in table.mismatches}
    assert named == {**{offset: [column] for column, offset in offsets.items()}, weighed: ["weight"]}
    assert all(m.key for table in report.tables for m in table.mismatches)
    mended(room)


def test_a_row_moved_to_another_offset_keeps_the_counts_and_is_found(room: VerifyRoom) -> None:
    first, second = room.offsets("trades", 2)
    room.sql(f"delete from trades_log where _offset = {first}")
    room.sql(
        f"insert into trades_log select * replace({first} as _offset) "
        f"from (select * from trades_log final where _offset = {second})"
    )
    assert room.faults(room.verify()) == {("trades", "sink", "different"): [first]}
    mended(room)


def test_rows_doubled_by_one_send_are_found_and_single_again(room: VerifyRoom) -> None:
    room.sql("system stop merges trades_log")
    offsets = room.offsets("trades", 3)
    room.sql(f"insert into trades_log select * from trades_log final where _offset in ({listed(offsets)})")
    try:
        assert room.faults(room.verify()) == {("trades", "sink", "doubled"): offsets}
    finally:
        room.sql("system start merges trades_log")
    mended(room)
    assert room.service.sink.scalar("select count() - uniqExact(_offset, _send) from trades_log") == 0


def test_rows_that_the_log_does_not_have_are_extra_archived_and_removed(room: VerifyRoom) -> None:
    [kept] = room.offsets("trades", 1)
    [free] = room.offsets("positions", 1)
    room.sql(
        f"insert into trades_log select * replace({free} as _offset, _version + 7 as _version, 'PLANTED' as trade_id, "
        f"'PLANTED' as _key) from (select * from trades_log final where _offset = {kept})"
    )
    report = room.verify()
    assert room.faults(report) == {("trades", "sink", "extra"): [free]}
    assert [(s.key, str(s.side), str(s.kind)) for s in of(report, "trades").state] == [("PLANTED", "sink", "extra")]
    before = room.session.row("select count(*) from removed_rows")
    mended(room)
    rows = room.session.rows("select log_offset, row_json from removed_rows offset ?", list(before or ()))
    assert [(offset, "PLANTED" in text) for offset, text in rows] == [(free, True)]


def test_a_whole_batch_gone_is_missing_row_by_row(room: VerifyRoom) -> None:
    first, last = largest_batch(room)
    room.sql(f"delete from trades_log where _offset between {first} and {last}")
    sql = f"select log_offset from change_log where table_name = 'trades' and log_offset between {first} and {last}"
    expected = sorted(at for (at,) in room.session.rows(sql))
    assert len(expected) > 100
    assert room.faults(room.verify()) == {("trades", "sink", "missing"): expected}
    mended(room)


def test_a_truncated_table_is_filled_again(room: VerifyRoom) -> None:
    room.sql("truncate table positions_log")
    mended(room)


def test_a_dropped_table_is_made_and_filled_again(room: VerifyRoom) -> None:
    for name in ("trades_log", "trades_state"):
        room.sql(f"drop table {name} sync")
    report = room.verify()
    assert {p.invariant for p in of(report, "trades").problems} == {Invariant.EXISTS}
    mended(room)


def test_a_row_beyond_everything_sent_is_told_and_left_alone(room: VerifyRoom) -> None:
    [offset] = room.offsets("trades", 1)
    room.sql(
        "insert into trades_log select * replace(900000 as _offset, 1 as _version) "
        f"from (select * from trades_log final where _offset = {offset})"
    )
    report = room.repair()
    assert [p.invariant for p in of(report.before, "trades").problems] == [Invariant.BEYOND]
    assert report.plan.left
    assert room.service.sink.scalar("select count() from trades_log where _offset = 900000") == 1
    room.sql("delete from trades_log where _offset = 900000")


# ── T and T_state ──


def test_a_state_row_altered_is_different_and_renewed(room: VerifyRoom) -> None:
    key = room.service.sink.scalar("select trade_id from trades order by trade_id limit 1 offset 20")
    room.sql(f"alter table trades_state update price = price + 1 where trade_id = '{key}'")
    report = room.verify()
    assert room.faults(report) == {}
    assert [(s.key, str(s.side), str(s.kind)) for s in of(report, "trades").state] == [(key, "sink", "different")]
    mended(room)


def test_a_lost_tombstone_is_found_before_it_does_harm(room: VerifyRoom) -> None:
    deleted = room.session.rows(
        "select arg_max(op, log_offset) as last_op, key from change_log where table_name = 'trades' group by key "
        "having last_op = 'd' and count(*) > 1 order by key limit 1"
    )
    key = deleted[0][1]
    room.sql(f"alter table trades_state delete where trade_id = '{key}'")
    report = room.verify()
    assert [(s.key, str(s.side), str(s.kind)) for s in of(report, "trades").state] == [(key, "sink", "missing")]
    mended(room)
    assert room.service.sink.scalar(f"select max(_is_deleted) from trades_state where trade_id = '{key}'") == 1


def test_a_lost_tombstone_that_lets_an_old_row_show_is_mended(room: VerifyRoom) -> None:
    [(key, version)] = room.session.rows(
        "select key, max(version) from change_log where table_name = 'trades' group by key "
        "having arg_max(op, log_offset) = 'd' and count(*) > 1 order by key desc limit 1"
    )
    room.sql(f"alter table trades_state delete where trade_id = '{key}'")
    room.sql(
        f"insert into trades_state select trade_id, venue, price, quantity, executed_at, _pipeline, _offset, _version, _op, _event_id, _event_at, _logged_at, _schema_version, 0 from trades_log final where trade_id = '{key}' and _version < {version} and _op != 'd' limit 1"
    )
    report = room.verify()
    assert [(s.key, str(s.side)) for s in of(report, "trades").state] == [(key, "sink")]
    mended(room)


def test_a_state_row_from_the_future_is_removed(room: VerifyRoom) -> None:
    key = room.service.sink.scalar("select trade_id from trades order by trade_id limit 1 offset 30")
    for more in (10**9, 2 * 10**9):
        room.sql(
            f"insert into trades_state select * replace(_version + {more} as _version, price + 5 as price) "
            f"from (select * from trades_state final where trade_id = '{key}')"
        )
    report = room.verify()
    assert [(s.key, str(s.side), str(s.kind)) for s in of(report, "trades").state] == [(key, "sink", "different")]
    mended(room)


def test_a_lost_state_table_is_filled_again(room: VerifyRoom) -> None:
    room.sql("truncate table positions_state")
    assert of(room.verify(), "positions").state
    mended(room)


def test_stale_rows_never_win_after_old_changes_were_sent_again(room: VerifyRoom) -> None:
    offsets = room.offsets("trades", 50)
    room.sql(f"delete from trades_log where _offset in ({listed(offsets)})")
    mended(room)


# ── in DuckDB ──


def test_a_logged_change_that_was_altered_is_the_logs_fault_and_comes_back_from_the_sink(room: VerifyRoom) -> None:
    before = room.whole_log()
    [offset] = room.offsets("trades", 1)
    room.log_sql(
        "update change_log set payload = regexp_replace(payload, '\"quantity\": *[0-9]+', '\"quantity\":1') "
        f"where log_offset = {offset}"
    )
    assert room.faults(room.verify()) == {("trades", "log", "different"): [offset]}
    mended(room)
    assert room.whole_log() == before


def test_a_payload_that_nothing_can_read_any_more_is_the_logs_fault(room: VerifyRoom) -> None:
    before = room.whole_log()
    [offset] = room.offsets("trades", 1)
    room.log_sql(f"update change_log set payload = '{{\"trade' where log_offset = {offset}")
    report = room.verify()
    assert room.faults(report) == {("trades", "log", "different"): [offset]}
    mended(room)
    assert room.whole_log() == before


def test_changes_deleted_from_the_log_come_back_from_the_sink(room: VerifyRoom) -> None:
    before = room.whole_log()
    offsets = {table: room.offsets(table, 4) for table in ("trades", "positions", "notes")}
    room.log_sql(f"delete from change_log where log_offset in ({listed(sum(offsets.values(), []))})")
    report = room.verify()
    assert room.faults(report) == {
        ("trades", "log", "missing"): offsets["trades"],
        ("positions", "log", "missing"): offsets["positions"],
        ("change_log", "log", "missing"): offsets["notes"],
    }
    assert [p.invariant for p in report.problems] == [Invariant.OFFSETS]
    mended(room)
    assert room.whole_log() == before


def test_changes_doubled_in_the_log_are_single_again(room: VerifyRoom) -> None:
    before = room.whole_log()
    offsets = room.offsets("trades", 3)
    room.log_sql(f"insert into change_log select * from change_log where log_offset in ({listed(offsets)})")
    assert room.faults(room.verify()) == {("trades", "log", "doubled"): offsets}
    mended(room)
    assert room.whole_log() == before


def test_a_change_moved_to_another_table_comes_home(room: VerifyRoom) -> None:
    before = room.whole_log()
    [offset] = room.offsets("trades", 1)
    room.log_sql(f"update change_log set table_name = 'positions' where log_offset = {offset}")
    found = room.faults(room.verify())
    assert found[("trades", "log", "missing")] == [offset]
    mended(room)
    assert room.whole_log() == before


def test_both_sides_altered_in_one_batch_are_told_apart_row_by_row(room: VerifyRoom) -> None:
    before = room.whole_log()
    ours, theirs, gone = room.offsets("trades", 3)
    room.log_sql(f"update change_log set event_id = 'x' where log_offset = {ours}")
    room.sql(f"alter table trades_log update quantity = 0 where _offset = {theirs}")
    room.sql(f"delete from trades_log where _offset = {gone}")
    assert room.faults(room.verify()) == {
        ("trades", "log", "different"): [ours],
        ("trades", "sink", "different"): [theirs],
        ("trades", "sink", "missing"): [gone],
    }
    mended(room)
    assert room.whole_log() == before


def test_the_same_row_altered_on_both_sides_is_said_and_nothing_is_sent_over_anything(room: VerifyRoom) -> None:
    [offset] = room.offsets("trades", 1)
    room.log_sql(f"update change_log set event_id = event_id || 'x' where log_offset = {offset}")
    room.sql(f"alter table trades_log update quantity = 0 where _offset = {offset}")
    report = room.repair()
    assert room.faults(report.before) == {("trades", "unknown", "different"): [offset]}
    assert (report.sent_rows, report.log_rows) == (0, 0)
    assert "neither side" in report.plan.left[0]
    room.log_sql(f"update change_log set event_id = rtrim(event_id, 'x') where log_offset = {offset}")
    mended(room)


def test_a_row_of_duckdbs_own_state_that_differs_is_rebuilt_from_the_log(room: VerifyRoom) -> None:
    room.service.upkeep.turn()
    from replicator.state import fold

    fold(room.session, room.service.catalog.current["trades"], room.service.changelog.head)
    key = (room.session.row("select trade_id from trades_state order by 1 limit 1 offset 5") or ("",))[0]
    gone = (room.session.row("select trade_id from trades_state order by 1 limit 1 offset 6") or ("",))[0]
    room.log_sql(f"update trades_state set quantity = quantity + 1 where trade_id = '{key}'")
    room.log_sql(f"delete from trades_state where trade_id = '{gone}'")
    report = room.verify()
    found = {(s.key, str(s.side), str(s.kind)) for s in of(report, "trades").state}
    assert found == {(key, "log", "different"), (gone, "log", "missing")}
    mended(room)


# ── records ──


def test_a_ledger_row_that_is_gone_is_written_again(room: VerifyRoom) -> None:
    room.sql("delete from replicator_batches where table_name = 'trades'")
    assert {p.invariant for p in room.verify().problems} == {Invariant.LEDGER_WHOLE}
    mended(room)


def test_a_lying_ledger_is_put_right(room: VerifyRoom) -> None:
    room.sql(
        "alter table replicator_batches update checksum = '1:0:0' where table_name = 'trades' and first_offset = 1"
    )
    room.sql(
        "insert into replicator_batches select * replace(3 as first_offset, 5 as last_offset) "
        "from (select * from replicator_batches final where table_name = 'positions' limit 1)"
    )
    problems = room.verify().problems
    assert {p.invariant for p in problems} == {Invariant.LEDGER_TRUE}
    assert len(problems) == 2
    mended(room)


def test_a_batchs_record_that_lies_is_corrected_where_everybody_else_agrees(room: VerifyRoom) -> None:
    before = room.session.rows("select * from sync_batches order by table_name, first_offset")
    lie = f"{1:d}:{1:016x}:{1:016x}"
    room.log_sql(f"update sync_batches set checksum = '{lie}' where table_name = 'trades' and first_offset = 1")
    report = room.verify()
    assert [(p.invariant, p.side) for p in of(report, "trades").problems] == [(Invariant.RECORD, Side.LOG)]
    mended(room)
    assert room.session.rows("select * from sync_batches order by table_name, first_offset") == before


def test_a_batch_without_a_record_is_sent_and_recorded(room: VerifyRoom) -> None:
    sql = "select first_offset from sync_batches where table_name = 'trades' order by 1 limit 1 offset 1"
    [(first,)] = room.session.rows(sql)
    room.log_sql(f"delete from sync_batches where table_name = 'trades' and first_offset = {first}")
    assert Invariant.COVERED in {p.invariant for p in room.verify().problems}
    mended(room)


def test_a_checkpoint_that_passed_changes_never_sent_is_lowered(room: VerifyRoom) -> None:
    room.service.controls.pause("deliver", actor="test")
    room.produce(room.flow(20))
    wait_until(lambda: room.service.changelog.head >= room.logged, "it in the log")
    head = room.service.changelog.head
    room.log_sql(f"update checkpoints set log_offset = {head} where table_name = 'trades'")
    assert Invariant.CHECKPOINT in {p.invariant for p in room.verify().problems}
    room.repair()
    room.service.controls.resume("deliver", actor="test")
    room.wait_delivered()
    assert room.verify().mismatches == 0


# ── what is known ──


def test_a_dry_run_changes_nothing(room: VerifyRoom) -> None:
    offsets = room.offsets("trades", 3)
    room.sql(f"delete from trades_log where _offset in ({listed(offsets)})")
    held = "select count(), sum(cityHash64(*)) from trades_log"
    before = room.service.sink.rows(held), room.whole_log(), room.session.rows("from operator_actions")
    report = room.repair(dry_run=True)
    assert (room.service.sink.rows(held), room.whole_log(), room.session.rows("from operator_actions")) == before
    assert report.as_json()["plan"]["tables"][0]["send_again"] == 3
    mended(room)


def test_discarded_ranges_are_no_mismatches(room: VerifyRoom) -> None:
    first, last = largest_batch(room)
    room.sql(f"delete from trades_log where _offset between {first} and {last}")
    room.log_sql(
        "insert into failed_syncs (table_name, first_offset, last_offset, row_count, reason, attempts, first_failed_at, "
        f"last_failed_at, status) values ('trades', {first}, {last}, 1, 'rejected', 1, now(), now(), 'discarded')"
    )
    assert room.faults(room.verify()) == {}
    room.log_sql("update failed_syncs set status = 'resolved'")
    assert room.faults(room.verify())
    mended(room)


def test_a_lost_range_inside_a_batch_does_not_hide_the_rest_of_it(room: VerifyRoom) -> None:
    first, second = room.offsets("trades", 2)
    room.log_sql(
        "insert into failed_syncs (table_name, first_offset, last_offset, row_count, reason, attempts, first_failed_at, "
        f"last_failed_at, status) values ('trades', {first}, {first}, 1, 'lost', 1, now(), now(), 'open')"
    )
    room.sql(f"delete from trades_log where _offset in ({first}, {second})")
    assert room.faults(room.verify()) == {("trades", "sink", "missing"): [second]}
    room.log_sql("update failed_syncs set status = 'resolved'")
    mended(room)


def test_only_the_range_asked_for_is_reported(room: VerifyRoom) -> None:
    first, second = room.offsets("trades", 2)
    room.sql(f"delete from trades_log where _offset in ({first}, {second})")
    report = room.verify(tables=("trades",), first=second)
    assert room.faults(report) == {("trades", "sink", "missing"): [second]}
    mended(room)


def test_declared_sums_that_break_are_named_by_group(room: VerifyRoom) -> None:
    [(offset, venue)] = room.service.sink.rows("select _offset, venue from trades order by trade_id limit 1 offset 9")
    room.sql(f"alter table trades_log update quantity = quantity + 5 where _offset = {offset}")
    [found] = of(room.verify(), "trades").breaks
    assert (found.group, found.column) == ({"venue": venue}, "quantity")
    assert int(str(found.sink)) == int(str(found.log)) + 5
    mended(room)


def test_the_quick_way_compares_the_sink_with_what_was_frozen(room: VerifyRoom) -> None:
    [offset] = room.offsets("trades", 1)
    room.sql(f"delete from trades_log where _offset = {offset}")
    report = room.verify(reread_log=False)
    assert room.faults(report) == {("trades", "sink", "missing"): [offset]}
    mended(room)

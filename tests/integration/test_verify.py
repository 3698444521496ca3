"""Faults planted in ClickHouse: each is found, classed right and mended."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from verify_room import VerifyRoom, agreed, largest_batch, listed, mended, of, shared_room

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.errors import UsageError
from replicator.verify_report import Invariant


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, _clickhouse: ClickHouse, _valkey: Valkey) -> Iterator[VerifyRoom]:
    """One filled pipeline; each test leaves it mended."""
    with shared_room(tmp_path_factory.mktemp("verify"), _valkey.start(), _clickhouse.start()) as room:
        yield room


@pytest.fixture
def room(shared: VerifyRoom) -> VerifyRoom:
    """Both sides agree; the test mends what it breaks."""
    return shared.clean()


def test_what_agrees_has_no_mismatches(room: VerifyRoom) -> None:
    report = agreed(room)
    assert report.rows == 3000
    keys = {table.table: table.keys is not None for table in report.tables}
    assert keys == {"trades": True, "positions": True, "change_log": False}


def test_a_table_that_does_not_exist_is_refused(shared: VerifyRoom) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        shared.verify(tables=("nowhere",))


# ── in ClickHouse ──


def test_deleted_rows_are_missing(room: VerifyRoom) -> None:
    offsets = {table: room.offsets(table, 5) for table in ("trades", "positions", "notes")}
    room.sql(f"delete from trades_log where _offset in ({listed(offsets['trades'])})")
    room.sql(f"delete from positions_log where _offset in ({listed(offsets['positions'])})")
    room.sql(f"delete from change_log where log_offset in ({listed(offsets['notes'])})")
    assert room.faults(mended(room)) == {
        ("trades", "sink", "missing"): offsets["trades"],
        ("positions", "sink", "missing"): offsets["positions"],
        ("change_log", "sink", "missing"): offsets["notes"],
    }


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
    report = mended(room, "trades", "positions")
    assert room.faults(report) == {
        ("trades", "sink", "different"): sorted(offsets.values()),
        ("positions", "sink", "different"): [weighed],
    }
    named = {m.offset: list(m.columns) for table in report.tables for m in table.mismatches}
    assert named == {**{offset: [column] for column, offset in offsets.items()}, weighed: ["weight"]}
    assert all(m.key for table in report.tables for m in table.mismatches)


def test_a_row_moved_to_another_offset_keeps_the_counts_and_is_found(room: VerifyRoom) -> None:
    first, second = room.offsets("trades", 2)
    room.sql(f"delete from trades_log where _offset = {first}")
    room.sql(
        f"insert into trades_log select * replace({first} as _offset) "
        f"from (select * from trades_log final where _offset = {second})"
    )
    assert room.faults(mended(room, "trades")) == {("trades", "sink", "different"): [first]}


def test_rows_doubled_by_one_send_are_found_and_single_again(room: VerifyRoom) -> None:
    room.sql("system stop merges trades_log")
    offsets = room.offsets("trades", 3)
    room.sql(f"insert into trades_log select * from trades_log final where _offset in ({listed(offsets)})")
    try:
        assert room.faults(room.verify(tables=("trades",))) == {("trades", "sink", "doubled"): offsets}
    finally:
        room.sql("system start merges trades_log")
    mended(room, "trades")
    assert room.service.sink.scalar("select count() - uniqExact(_offset, _send) from trades_log") == 0


def test_rows_that_the_log_does_not_have_are_extra_archived_and_removed(room: VerifyRoom) -> None:
    [kept] = room.offsets("trades", 1)
    [free] = room.offsets("positions", 1, among="trades")
    room.sql(
        f"insert into trades_log select * replace({free} as _offset, _version + 7 as _version, 'PLANTED' as trade_id, "
        f"'PLANTED' as _key) from (select * from trades_log final where _offset = {kept})"
    )
    before = room.session.row("select count(*) from removed_rows")
    report = mended(room, "trades", "positions")
    assert room.faults(report) == {("trades", "sink", "extra"): [free]}
    assert [(s.key, str(s.side), str(s.kind)) for s in of(report, "trades").state] == [("PLANTED", "sink", "extra")]
    rows = room.session.rows("select log_offset, row_json from removed_rows offset ?", list(before or ()))
    assert [(offset, "PLANTED" in text) for offset, text in rows] == [(free, True)]


def test_a_whole_batch_gone_is_missing_row_by_row(room: VerifyRoom) -> None:
    first, last = largest_batch(room)
    room.sql(f"delete from trades_log where _offset between {first} and {last}")
    sql = f"select log_offset from change_log where table_name = 'trades' and log_offset between {first} and {last}"
    expected = sorted(at for (at,) in room.session.rows(sql))
    assert len(expected) > 100
    assert room.faults(mended(room, "trades")) == {("trades", "sink", "missing"): expected}


def test_a_truncated_table_is_filled_again(room: VerifyRoom) -> None:
    room.sql("truncate table positions_log")
    mended(room, "positions")
    theirs = room.service.sink.scalar("select count() from positions_log final")
    assert theirs == room.session.rows("select count(*) from positions_log")[0][0]


def test_a_dropped_table_is_made_and_filled_again(room: VerifyRoom) -> None:
    for name in ("trades_log", "trades_state"):
        room.sql(f"drop table {name} sync")
    assert {p.invariant for p in of(mended(room, "trades"), "trades").problems} == {Invariant.EXISTS}


def test_a_row_beyond_everything_sent_is_told_and_left_alone(room: VerifyRoom) -> None:
    [offset] = room.offsets("trades", 1)
    room.sql(
        "insert into trades_log select * replace(900000 as _offset, 1 as _version) "
        f"from (select * from trades_log final where _offset = {offset})"
    )
    report = room.repair(tables=("trades",))
    assert [p.invariant for p in of(report.before, "trades").problems] == [Invariant.BEYOND]
    assert report.plan.left
    assert room.service.sink.scalar("select count() from trades_log where _offset = 900000") == 1
    room.sql("delete from trades_log where _offset = 900000")
    agreed(room, "trades")


# ── T and T_state ──


def test_a_state_row_altered_is_different_and_renewed(room: VerifyRoom) -> None:
    key = room.service.sink.scalar("select trade_id from trades order by trade_id limit 1 offset 20")
    room.sql(f"alter table trades_state update price = price + 1 where trade_id = '{key}'")
    report = mended(room, "trades")
    assert room.faults(report) == {}
    assert [(s.key, str(s.side), str(s.kind)) for s in of(report, "trades").state] == [(key, "sink", "different")]


def test_a_lost_tombstone_is_found_before_it_does_harm(room: VerifyRoom) -> None:
    """Its key has two columns; the next test's has one."""
    deleted = room.session.rows(
        "select key from change_log where table_name = 'positions' group by key "
        "having arg_max(op, log_offset) = 'd' and count(*) > 1 order by key"
    )
    [key] = room.random.choice(deleted)
    account, symbol = json.loads(key)
    ours = f"account = {account} and symbol = '{symbol}'"
    room.sql(f"alter table positions_state delete where {ours}")
    report = mended(room, "positions")
    assert [(s.key, str(s.side), str(s.kind)) for s in of(report, "positions").state] == [(key, "sink", "missing")]
    assert room.service.sink.scalar(f"select max(_is_deleted) from positions_state where {ours}") == 1


def test_a_lost_tombstone_that_lets_an_old_row_show_is_mended(room: VerifyRoom) -> None:
    [(key, version)] = room.session.rows(
        "select key, max(version) from change_log where table_name = 'trades' group by key "
        "having arg_max(op, log_offset) = 'd' and count(*) > 1 order by key desc limit 1"
    )
    room.sql(f"alter table trades_state delete where trade_id = '{key}'")
    room.sql(
        f"insert into trades_state select trade_id, venue, price, quantity, executed_at, _pipeline, _offset, _version, _op, _event_id, _event_at, _logged_at, _schema_version, 0 from trades_log final where trade_id = '{key}' and _version < {version} and _op != 'd' limit 1"
    )
    report = mended(room, "trades")
    assert [(s.key, str(s.side)) for s in of(report, "trades").state] == [(key, "sink")]


def test_a_state_row_from_the_future_is_removed(room: VerifyRoom) -> None:
    key = room.service.sink.scalar("select trade_id from trades order by trade_id limit 1 offset 30")
    for more in (10**9, 2 * 10**9):
        room.sql(
            f"insert into trades_state select * replace(_version + {more} as _version, price + 5 as price) "
            f"from (select * from trades_state final where trade_id = '{key}')"
        )
    report = mended(room, "trades")
    assert [(s.key, str(s.side), str(s.kind)) for s in of(report, "trades").state] == [(key, "sink", "different")]


def test_a_lost_state_table_is_filled_again(room: VerifyRoom) -> None:
    room.sql("truncate table positions_state")
    assert of(mended(room, "positions"), "positions").state


def test_stale_rows_never_win_after_old_changes_were_sent_again(room: VerifyRoom) -> None:
    offsets = room.offsets("trades", 50)
    room.sql(f"delete from trades_log where _offset in ({listed(offsets)})")
    mended(room, "trades")

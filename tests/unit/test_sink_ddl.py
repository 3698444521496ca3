"""A declared table's place in ClickHouse: made, made again, grown, and its current rows whatever the order of arrival."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
from both_sides_room import EVERYTHING, append, assert_equal_hashes, create, send, wired
from clickhouse_connect.driver.client import Client

from replicator.checksum import hashed_columns, row_hashes_clickhouse
from replicator.schema import compare, quote, table_schema
from replicator.sink import INSERT_SETTINGS
from replicator.sink_ddl import (
    alter_statements,
    create_statements,
    drift,
    drop_statements,
    expected_columns,
    expected_state_columns,
)
from replicator.typed import log_rows_sql
from replicator.wire import ROW_HASH, arrow_schema, conform

T = table_schema("t", {"k": "INTEGER", "n": "SMALLINT", "d": "DECIMAL(9,2)", "s": "VARCHAR"}, ["k"])

COLUMNS_OF = "select name, type from system.columns where database = currentDatabase() and table = {table:String} order by position"


def shape(clickhouse: Client, table: str) -> dict[str, str]:
    return dict(clickhouse.query(COLUMNS_OF, {"table": table}).result_rows)


def test_the_tables_are_made_as_they_are_expected_and_may_be_made_again(clickhouse: Client) -> None:
    for _ in range(2):
        create(clickhouse, EVERYTHING)
    assert list(shape(clickhouse, "everything_log").items()) == list(expected_columns(EVERYTHING).items())
    assert list(shape(clickhouse, "everything_state").items()) == list(expected_state_columns(EVERYTHING).items())
    assert set(arrow_schema(EVERYTHING).names) == set(expected_columns(EVERYTHING))
    for statement in drop_statements(EVERYTHING) * 2:
        clickhouse.command(statement)
    assert clickhouse.command("select count() from system.tables where database = currentDatabase()") == 0


def test_a_table_that_drifted_is_described(clickhouse: Client) -> None:
    create(clickhouse, T)
    assert drift(expected_columns(T), shape(clickhouse, "t_log")) == []
    clickhouse.command("drop view t_feed")
    clickhouse.command("alter table t_log drop column d, add column mine String, modify column n Nullable(Int64)")
    found = drift(expected_columns(T), shape(clickhouse, "t_log"))
    assert [next(name for name in ("'d'", "'n'", "'mine'") if name in line) for line in found] == [
        "'d'",
        "'n'",
        "'mine'",
    ]


def test_a_retention_of_the_log_is_part_of_its_table(clickhouse: Client) -> None:
    for statement in create_statements(T, log_ttl_days=30):
        clickhouse.command(statement)
    assert "toIntervalDay(30)" in clickhouse.command("show create table t_log")


def current(clickhouse: Client) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in clickhouse.query("select k, s from t order by k").result_rows]


def test_current_rows_do_not_depend_on_the_order_of_arrival(clickhouse: Client, log: Any) -> None:
    create(clickhouse, T)
    changes = [
        ({"k": 1, "s": "old"}, "c"),
        ({"k": 1, "s": "new"}, "u"),
        ({"k": 2, "s": "gone"}, "c"),
        (None, "d"),
        ({"k": 3, "s": "first"}, "c"),
        (None, "d"),
        ({"k": 3, "s": "again"}, "c"),
    ]
    append(log, T, [payload for payload, _ in changes], [op for _, op in changes], ["", "", "", "2", "", "3", ""])
    for offset in (4, 7, 2, 6, 1, 3, 5):
        send(clickhouse, log, T, offset, offset)
        if offset == 6:
            clickhouse.command("optimize table t_state final")
    assert current(clickhouse) == [(1, "new"), (3, "again")]
    clickhouse.command("optimize table t_state final")
    send(clickhouse, log, T, 3, 3, send=2)  # a replay of what was deleted since
    assert current(clickhouse) == [(1, "new"), (3, "again")]
    clickhouse.command("set do_not_merge_across_partitions_select_final = 1")
    assert_equal_hashes(clickhouse, log, T)


def test_an_identical_send_is_stored_once(clickhouse: Client, log: Any) -> None:
    create(clickhouse, T)
    append(log, T, [{"k": 1, "s": "a"}, {"k": 2, "s": "b"}])
    batch = wired(log, T).drop_columns([ROW_HASH])
    batch = batch.append_column("_pipeline", pa.repeat("main", 2)).append_column("_send", pa.array([1, 1], pa.uint64()))
    for _ in range(2):
        settings = INSERT_SETTINGS | {"insert_deduplication_token": "main/t/1-2/1"}
        clickhouse.insert_arrow("t_log", conform(batch, arrow_schema(T)), settings=settings)
    assert clickhouse.command("select count() from t_log") == 2
    assert clickhouse.command("select count() from t_state") == 2


# ── a table that grows ──

FIRST = table_schema(
    "t",
    {
        "k": "BIGINT",
        "n": "INTEGER",
        "d": "DECIMAL(9,2)",
        "f": "FLOAT",
        "e": "ENUM('a','b')",
        "q": "UTINYINT",
        "label": "ENUM('x')",
    },
    ["k"],
)
SECOND = table_schema(
    "t",
    {
        "k": "BIGINT",
        "added": "VARCHAR NOT NULL DEFAULT 'd'",
        "n": "BIGINT",
        "d": "DECIMAL(18,6)",
        "f": "DOUBLE",
        "e": "ENUM('a','b','c')",
        "q": "DECIMAL(5,1)",
        "label": "VARCHAR",
        "last": "TIMESTAMP_NS",
    },
    ["k"],
    schema_version=2,
)
OLD = {"k": 1, "n": -(2**31), "d": "1234567.89", "f": 0.1, "e": "b", "q": 255, "label": "x"}
NEW = {
    "k": 2,
    "n": 2**62,
    "d": "123456789012.345678",
    "f": 0.1,
    "e": "c",
    "q": "1.5",
    "label": "y",
    "last": "2026-01-01T00:00:00.123456789Z",
}


def test_a_table_grows_and_old_rows_keep_their_values_and_hashes(clickhouse: Client, log: Any) -> None:
    create(clickhouse, FIRST)
    append(log, FIRST, [OLD, {"k": 3}, None], ["c", "c", "d"], ["", "", "9"])
    send(clickhouse, log, FIRST)
    before = clickhouse.query("select * from t_log order by _offset").result_rows
    assert compare(FIRST, SECOND).refusals == ()
    for _ in range(2):
        for statement in alter_statements(FIRST, SECOND):
            clickhouse.command(statement)
    assert shape(clickhouse, "t_log") == expected_columns(SECOND)
    assert shape(clickhouse, "t_state") == expected_state_columns(SECOND)
    assert list(shape(clickhouse, "t_log")) == list(expected_columns(SECOND))
    append(log, SECOND, [NEW, {"k": 4}])
    send(clickhouse, log, SECOND, 4)
    for schema in (FIRST, SECOND):
        assert_equal_hashes(clickhouse, log, schema)
    assert len(before) == 3
    columns = ", ".join(quote(column.name) for column in SECOND.columns if column.name != "last")
    ours = log.execute(
        f"select {columns} from ({log_rows_sql([FIRST, SECOND])}) where _op <> 'd' order by k"
    ).fetchall()
    held = [tuple(found) for found in clickhouse.query(f"select {columns} from t order by k").result_rows]
    assert held == ours
    assert clickhouse.command("select toString(last) from t where k = 2") == "2026-01-01 00:00:00.123456789"


def test_a_change_beyond_what_the_old_type_held_is_seen_in_a_widened_column(clickhouse: Client, log: Any) -> None:
    create(clickhouse, FIRST)
    append(log, FIRST, [OLD])
    send(clickhouse, log, FIRST)
    for statement in alter_statements(FIRST, SECOND):
        clickhouse.command(statement)
    columns = hashed_columns(FIRST)
    hashed = row_hashes_clickhouse("t_log", columns, "_offset")
    seen = clickhouse.query(hashed).result_rows
    for change in ("d = d + 0.000001", "f = f + 0.0000000000001", "q = q + 0.5", "n = n + 4294967296"):
        clickhouse.command(f"alter table t_log update {change} where true", settings={"mutations_sync": 1})
        now_seen = clickhouse.query(hashed).result_rows
        assert now_seen != seen, change
        seen = now_seen


def test_rows_in_flight_and_replays_are_sent_under_the_schema_they_were_written_under(
    clickhouse: Client, log: Any
) -> None:
    create(clickhouse, FIRST)
    append(log, FIRST, [OLD, {"k": 3}])
    for statement in alter_statements(FIRST, SECOND):
        clickhouse.command(statement)
    assert wired(log, FIRST)[ROW_HASH] == wired(log, FIRST, table=SECOND)[ROW_HASH]
    send(clickhouse, log, FIRST, table=SECOND)
    assert_equal_hashes(clickhouse, log, FIRST)
    assert clickhouse.query("select n, d, added, last from t where k = 1").result_rows == [
        (-(2**31), Decimal("1234567.89"), None, None)
    ]

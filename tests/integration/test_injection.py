"""Names and values that would be SQL if anything left them unquoted: of tables, columns, streams, databases and keys,
through the log, both databases, the commands and the queries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from attrs import define
from replicator_process import Replicator

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey

DATABASE = "select"
FAILED = "group"
STREAMS = {
    "order": "tr'ades\"; drop table change_log; --",
    "user": "s`t\\\\r {} %s $1 ? :x ü😀 */",
}
COLUMNS = {
    "select": "VARCHAR", "drop table x--": "DECIMAL(18,6)", "цена": "BIGINT", "from": "VARCHAR", "1 st": "TIMESTAMP",
    "order": "VARCHAR", "values": "JSON", "v" * 120: "VARCHAR",
}  # fmt: skip
KEYS = (
    "k'; drop table change_log; --", 'k"; drop table "order_log"; --', "k` ; drop table user_log", "\\", "\\'", "'", "\0",
    "a\0b", "$1", "?", "{}", "%s", ":x", "null", "", "ü\u202e😀", "\n\t\r", "*/ select /*", "{select:String}", "x" * 5000,
)  # fmt: skip


def row(table: str, key: str) -> dict[str, Any]:
    return {
        "select": key, "drop table x--": "1.500000", "цена": 7, "from": f"{table}'\"`\\", "1 st": "2026-03-02T14:30:01Z",
        "order": key, "values": {key: [key]}, "v" * 120: "--",
    }  # fmt: skip


def toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@define
class Room:
    replicator: Replicator
    server: ClickHouse

    def sink(self, sql: str) -> list[dict[str, Any]]:
        text = self.server.execute(f"{sql} format JSONEachRow settings output_format_json_quote_64bit_integers = 0")
        return [json.loads(line) for line in text.splitlines()]

    def log(self, sql: str, *parameters: object) -> list[dict[str, Any]]:
        body = {"sql": sql, "parameters": list(parameters)}
        answer = self.replicator.http("POST", "/api/v1/query", token="read", body=body)
        assert answer.status == 200, answer.data
        rows: list[dict[str, Any]] = answer.json()["rows"]
        return rows


@pytest.fixture(scope="module")
def room(_valkey: Valkey, _clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    _valkey.start()
    _clickhouse.start().execute(f"create database if not exists `{DATABASE}`")
    tables = "".join(
        f'[[tables]]\nname = "{name}"\nstream = {toml(stream)}\nkey = ["select"]\n[tables.columns]\n'
        + "".join(f"{toml(column)} = {toml(kind)}\n" for column, kind in COLUMNS.items())
        for name, stream in STREAMS.items()
    )
    environment = {
        "REDIS_URL": _valkey.url,
        "CLICKHOUSE_ENDPOINT": _clickhouse.endpoint,
        "CLICKHOUSE_USER": _clickhouse.user,
        "CLICKHOUSE_PASSWORD": _clickhouse.password,
    }
    with (
        redis.Redis.from_url(_valkey.url) as producer,
        Replicator(
            directory=tmp_path_factory.mktemp("it's \"quoted\""), environment=environment, database=DATABASE,
            streams=toml([*STREAMS.values(), "change_log"]), sections=f"[serve]\nport = 0\n{tables}",
        ) as replicator,
    ):  # fmt: skip
        producer.flushall()
        writer = replicator.config_dir / "duckdb_rust_config.toml"
        replicator.write(writer.name, f'{writer.read_text()}failed_sync_table = "{FAILED}"\n')
        replicator.start()
        for key in KEYS:
            for table, stream in STREAMS.items():
                producer.xadd(stream, {"op": "c", "data": json.dumps(row(table, key))})
            producer.xadd("change_log", {"table": key or "t", "key": key, "id": key, "data": json.dumps({key: key})})
        total = 3 * len(KEYS)
        replicator.until_status(lambda r: r["sink"]["checkpoint_offset"] == total, "everything is delivered")
        yield Room(replicator, _clickhouse)
        assert replicator.stop() == 0, replicator.log_text
        for event in ("loop_failed", "lane_failed", "request_failed"):
            assert not replicator.events(event)
    _clickhouse.start().execute(f"drop database `{DATABASE}` sync")


@pytest.mark.parametrize("table", STREAMS)
def test_both_databases_hold_each_row_as_it_was_sent(room: Room, table: str) -> None:
    names = ", ".join(f'"{name}"' for name in COLUMNS if name != "values")
    ours = room.log(f'select {names} from "{table}" order by "select"')
    expected = [{name: value for name, value in row(table, key).items() if name != "values"} for key in KEYS]
    for each in expected:
        each["1 st"] = "2026-03-02 14:30:01"
    assert sorted(each["select"] for each in ours) == sorted(KEYS)
    assert [{**each, "1 st": each["1 st"][:19].replace("T", " ")} for each in ours] == sorted(
        expected, key=lambda each: each["select"].encode()
    )
    names = ", ".join(f"`{name}`" for name in COLUMNS if name not in ("values", "drop table x--", "1 st"))
    held = room.sink(f"select {names}, toString(`drop table x--`) d from `{DATABASE}`.`{table}` order by `select`")
    assert [each["select"] for each in held] == sorted(KEYS, key=str.encode)
    assert {(each["from"], each["d"], each["цена"]) for each in held} == {(f"{table}'\"`\\", "1.5", 7)}


def test_entries_of_tables_nobody_declared_keep_their_names(room: Room) -> None:
    ours = room.log(
        "select table_name, key, event_id from change_log where stream = ? order by log_offset", "change_log"
    )
    assert ours == [{"table_name": key or "t", "key": key, "event_id": key} for key in KEYS]
    held = room.sink(f"select table_name, key from `{DATABASE}`.change_log final order by log_offset")
    assert held == [{"table_name": key or "t", "key": key} for key in KEYS]


def test_commands_take_names_as_names(room: Room) -> None:
    replicator = room.replicator
    assert replicator.command("verify").code == 0
    for table in STREAMS:
        assert replicator.command("pause", table).code == 0
        assert replicator.command("resume", table).code == 0
        for key in KEYS:
            if "\0" in key or not key:
                continue  # no argument of a command can hold it
            found = replicator.command("state", table, "--key", key, "--json") if key == KEYS[0] else None
            assert found is None or (found.code == 0 and "1.500000" in found.out), found.err
    odd = "x'; drop table change_log; --"
    for words in (("pause", odd), ("state", odd), ("verify", "--table", odd), ("rejected", "list", "--stream", odd),
                  ("failed", "list", "--table", odd), ("trace", "--key", odd)):  # fmt: skip
        assert replicator.command(*words).code in (0, 2), words
    assert room.log("select count(*) c from change_log") == [{"c": 3 * len(KEYS)}]
    assert room.log(f'select count(*) c from "{FAILED}"') == [{"c": 0}]


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_a_query_takes_values_as_values(room: Room, key: str) -> None:
    assert room.log('select "from" f from "user" where "select" = ?', key) == [{"f": "user'\"`\\"}]
    answer = room.replicator.http("POST", "/api/v1/query", token="read", body={"sql": f'select 1 as "{key}"'})
    assert answer.status in (200, 400)
    answer = room.replicator.http("POST", "/api/v1/query", token="read", body={"sql": f'select * from "{key}"'})
    assert answer.status == 400

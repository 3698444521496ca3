"""``replicator rebuild`` with a running service and without, and killed at every step."""

from __future__ import annotations

import json
import signal

import pytest
import redis
from replicator_process import Replicator, until

from replicator.embedded.clickhouse import ClickHouse

ORDERS = """
[serve]
port = 0
[[tables]]
name = "orders"
key = ["id"]
[tables.columns]
id = "BIGINT"
n = "INTEGER"
side = "VARCHAR"
"""
NARROWER = ORDERS.replace('"INTEGER"', '"SMALLINT"').replace('side = "VARCHAR"\n', "")


def send(source: redis.Redis, first: int, last: int) -> None:
    pipe = source.pipeline(transaction=False)
    for k in range(first, last + 1):
        pipe.xadd("orders", {"data": json.dumps({"id": k, "n": k, "side": "buy"})})
    pipe.execute()


def delivered(replicator: Replicator, head: int) -> None:
    replicator.until_status(
        lambda r: r["log"]["head_offset"] == head and r["sink"]["lag_changes"] == 0, f"{head} changes delivered"
    )


def orders(server: ClickHouse, database: str) -> list[int]:
    return [int(k) for k in server.execute(f"select id from {database}.orders order by id").split()]


def left(server: ClickHouse, database: str) -> str:
    sql = f"select name from system.tables where database = '{database}' and name like '%rebuild%' order by name"
    return server.execute(sql).strip()


def test_a_running_service_rebuilds_once_it_has_a_yes(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    replicator.configure(streams='["orders"]', sections=ORDERS)
    replicator.start()
    send(source, 1, 50)
    delivered(replicator, 50)
    assert replicator.command("rebuild", "orders").code == 2, "it needs a yes"
    same = replicator.command("rebuild", "orders", "--yes")
    assert (same.code, "orders is made anew: 50 rows copied" in same.out) == (0, True)
    assert replicator.command("verify").code == 0 and left(clickhouse_server, clickhouse_database) == ""
    assert replicator.http("POST", "/api/v1/rebuild", token="read", body={"table": "orders"}).status == 403


def test_an_edit_that_a_start_refuses_is_taken_by_a_rebuild_without_a_service(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    replicator.configure(streams='["orders"]', sections=ORDERS)
    replicator.start()
    send(source, 1, 50)
    delivered(replicator, 50)
    replicator.stop()
    replicator.configure(sections=NARROWER)
    refused = replicator.command("sync")
    assert (refused.code, "or run `replicator rebuild orders`" in refused.err) == (2, True)
    looked = replicator.command("rebuild", "orders", "--dry-run")
    assert (looked.code, "column side goes" in looked.out, "safe" in looked.out) == (0, True, True)
    done = replicator.command("rebuild", "orders", "--yes", "--json")
    assert (done.code, done.json["copied_rows"]) == (0, 50), done.err
    replicator.start()
    send(source, 51, 60)
    delivered(replicator, 60)
    assert orders(clickhouse_server, clickhouse_database) == list(range(1, 61))


STEPS = ("rebuild.copied", "rebuild.inside@1", "rebuild.inside@2", "rebuild.inside@3")


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_is_settled_by_the_next_start(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str, step: str
) -> None:
    killed_and_settled(replicator, source, clickhouse_server, clickhouse_database, step)


def test_a_kill_is_settled_in_the_default_database_too(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse
) -> None:
    """chDB's is of the engine Overlay, where `replicator stack` and the shipped configuration put their tables."""
    replicator.database = "default"
    try:
        killed_and_settled(replicator, source, clickhouse_server, "default", "rebuild.inside@2")
    finally:
        replicator.kill()
        for kind in ("view", "table"):  # the feed before what it feeds
            like = "like '%View'" if kind == "view" else "not like '%View'"
            sql = f"select name from system.tables where database = 'default' and engine {like}"
            for name in clickhouse_server.execute(sql).split():
                clickhouse_server.execute(f"drop {kind} default.{name} sync")


def test_a_database_whose_tables_cannot_change_places_is_named_with_what_to_do(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str
) -> None:
    clickhouse_server.execute(f"drop database {clickhouse_database}")
    clickhouse_server.execute(f"create database {clickhouse_database} engine = Memory")
    replicator.configure(streams='["orders"]', sections=ORDERS)
    told = replicator.command("check")
    assert f"database {clickhouse_database} is of the engine Memory" in told.out
    replicator.start()
    send(source, 1, 5)
    delivered(replicator, 5)
    refused = replicator.command("rebuild", "orders", "--yes")
    assert refused.code == 3
    assert f"database {clickhouse_database} is of the engine Memory" in refused.err
    assert "[clickhouse] database" in refused.err


def killed_and_settled(
    replicator: Replicator, source: redis.Redis, clickhouse_server: ClickHouse, clickhouse_database: str, step: str
) -> None:
    name, _, nth = step.partition("@")
    replicator.environment["REPLICATOR_FAILPOINTS"] = f"{name}=kill@{nth or 1}"
    replicator.configure(streams='["orders"]', sections=ORDERS)
    replicator.start()
    send(source, 1, 40)
    delivered(replicator, 40)
    replicator.configure(sections=NARROWER)
    assert replicator.http("POST", "/api/v1/rebuild", body={"table": "orders"}).status == 200
    assert replicator.wait() == -signal.SIGKILL
    del replicator.environment["REPLICATOR_FAILPOINTS"]
    copying = name == "rebuild.copied"
    if copying:  # it never came to the decision: the old declaration is still in force
        replicator.configure(sections=ORDERS)
    replicator.start()
    send(source, 41, 50)
    delivered(replicator, 50)
    assert orders(clickhouse_server, clickhouse_database) == list(range(1, 51))
    shape = clickhouse_server.execute(
        f"select type from system.columns where database = '{clickhouse_database}' and table = 'orders_log' and name = 'n'"
    )
    assert shape.strip() == ("Nullable(Int32)" if copying else "Nullable(Int16)")
    until(lambda: replicator.command("verify").code == 0, "both sides agree")
    assert left(clickhouse_server, clickhouse_database) == "", "cleared away, or dropped once verified"

"""The shared fixtures give working engines."""

from __future__ import annotations

import redis

from replicator.embedded.clickhouse import ClickHouse


def test_redis_is_empty_and_writable(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.xadd("s", {"a": "1"})
        assert client.xlen("s") == 1


def test_a_database_of_its_own(clickhouse_server: ClickHouse, clickhouse_database: str) -> None:
    clickhouse_server.execute(f"create table {clickhouse_database}.t (a Int32) engine = MergeTree order by a")
    assert clickhouse_server.execute(f"select count() from {clickhouse_database}.t") == "0\n"


def test_killed_redis_comes_back_with_its_data(redis_server) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("a", "1")
    redis_server.kill()
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.get("a") == b"1"

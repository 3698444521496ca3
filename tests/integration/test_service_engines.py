"""A running service whose Redis or ClickHouse is absent, strange, silent, or refuses: what it says and what goes on."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import redis
from replicator_process import Replicator, add, free_port

from replicator.embedded.clickhouse import ClickHouse


def test_without_redis_it_runs_and_says_so(replicator: Replicator) -> None:
    replicator.environment["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}"
    replicator.start()
    report = replicator.until_status(lambda r: r["redis"]["reachable"] is False, "Redis is seen to be absent")
    assert report["state"] == "degraded"
    assert any("Redis at redis://127.0.0.1" in reason for reason in report["reasons"])
    assert report["streams"][0]["backlog_entries"] is None
    assert replicator.stop() == 0


def test_without_clickhouse_capture_goes_on_and_delivery_follows_when_it_comes(
    replicator: Replicator, source: redis.Redis, tmp_path: Path
) -> None:
    port = free_port()
    replicator.environment["CLICKHOUSE_ENDPOINT"] = f"http://127.0.0.1:{port}"
    replicator.start()
    add(source, 1, 500)
    report = replicator.until_status(
        lambda r: r["log"]["head_offset"] == 500 and r["clickhouse"]["reachable"] is False, "capture goes on"
    )
    assert report["state"] == "degraded"
    assert report["sink"]["lag_changes"] == 500
    assert report["sink"]["lag_seconds"] > 0
    assert report["sink"]["confirmed_offset"] is None
    user, password = replicator.environment["CLICKHOUSE_USER"], replicator.environment["CLICKHOUSE_PASSWORD"]
    with ClickHouse(directory=tmp_path / "late", port=port, user=user, password=password):
        report = replicator.until_status(
            lambda r: r["state"] == "ok" and r["sink"]["confirmed_offset"] == 500, "all is well once it is there"
        )
        assert report["sink"]["lag_changes"] == 0
        replicator.stop()


def test_wrong_clickhouse_password_is_a_failure_that_names_the_remedy(replicator: Replicator) -> None:
    replicator.environment["CLICKHOUSE_PASSWORD"] = "wrong-password"
    replicator.start()
    report = replicator.until_status(lambda r: r["clickhouse"]["reachable"] is False, "the refusal is seen")
    assert report["state"] == "failed"
    assert report["clickhouse"]["refused"]
    assert any("clickhouse_password" in reason for reason in report["reasons"])
    assert "wrong-password" not in json.dumps(report)
    assert "wrong-password" not in replicator.log_text


def test_a_new_clickhouse_password_is_taken_on_sighup(replicator: Replicator, clickhouse_server: ClickHouse) -> None:
    del replicator.environment["CLICKHOUSE_PASSWORD"]
    replicator.write("secrets.toml", '[auth]\nclickhouse_password = "wrong-password"\n')
    replicator.start()
    replicator.until_status(lambda r: r["clickhouse"]["refused"], "the refusal is seen")
    replicator.write("secrets.toml", f"[auth]\nclickhouse_password = {json.dumps(clickhouse_server.password)}\n")
    replicator.signal(signal.SIGHUP)
    replicator.until_status(lambda r: r["state"] == "ok" and r["sink"]["circuit"], "delivery begins")


def test_something_else_on_the_redis_port_is_said(replicator: Replicator, clickhouse_server: ClickHouse) -> None:
    replicator.environment["REDIS_URL"] = clickhouse_server.endpoint.replace("http", "redis")
    replicator.start()
    report = replicator.until_status(lambda r: r["redis"]["reachable"] is False, "it is seen not to be Redis")
    assert any("Redis" in reason for reason in report["reasons"])
    assert report["state"] != "ok"


def test_something_else_on_the_clickhouse_port_is_said(replicator: Replicator, redis_url: str) -> None:
    replicator.environment["CLICKHOUSE_ENDPOINT"] = redis_url.replace("redis", "http").rpartition("/")[0]
    replicator.start()
    report = replicator.until_status(lambda r: r["clickhouse"]["reachable"] is False, "it is seen not to be ClickHouse")
    assert any("ClickHouse" in reason for reason in report["reasons"])


def test_a_clickhouse_that_never_answers_does_not_hold_up_status_or_the_stop(replicator: Replicator) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        replicator.environment["CLICKHOUSE_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        replicator.start()
        report = replicator.status()
        assert report["sink"]["confirmed_offset"] is None
        assert report["clickhouse"]["reachable"] is not True
        assert replicator.stop() == 0

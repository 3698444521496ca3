"""Queries of the file itself, for when no service runs."""

from __future__ import annotations

import json

import redis
from replicator_process import Replicator


def test_without_a_service_the_command_asks_the_file(replicator: Replicator, source: redis.Redis) -> None:
    missing = replicator.command("query", "select 1")
    assert missing.code == 3
    assert "no database" in missing.err
    replicator.start()
    for number in range(3):
        source.xadd("trades", {"data": json.dumps({"n": number})})
    replicator.until_status(lambda r: r["log"]["head_offset"] == 3, "three changes are logged")
    replicator.kill()
    found = replicator.command("query", "select count(*) c from change_log", "--json")
    assert found.code == 0, found.err
    assert found.json["rows"] == [{"c": 3}]
    assert replicator.command("query", "select * from read_csv('/etc/hosts')").code == 2

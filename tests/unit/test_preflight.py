"""What `check` warns of before it hurts."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.config import load_settings
from replicator.preflight import clickhouse_grants, redis_acl, redis_warnings, version_of

SAFE = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory": "0", "maxmemory-policy": "noeviction"}
ABOUT = {"redis_version": "7.0.15", "role": "master"}


@pytest.mark.parametrize(
    ("configured", "about", "words"),
    [
        ({}, {}, None),
        ({"appendonly": "no"}, {}, "append-only file"),
        ({"appendfsync": "no"}, {}, "appendfsync"),
        ({"maxmemory": "1000", "maxmemory-policy": "allkeys-lru"}, {}, "evict"),
        ({"maxmemory": "1000"}, {}, None),
        ({"maxmemory-policy": "allkeys-lru"}, {}, None),
        ({}, {"redis_version": "6.2.7"}, "before 7.0"),
        ({}, {"redis_version": "6.0.1"}, "older than 6.2"),
        ({}, {"role": "slave"}, "replica"),
    ],
)
def test_redis_ways_that_will_hurt_are_warned_of(
    configured: dict[str, str], about: dict[str, str], words: str | None
) -> None:
    warnings = redis_warnings(ABOUT | about, SAFE | configured)
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


def test_without_leave_to_read_the_settings_info_decides() -> None:
    assert redis_warnings(ABOUT | {"aof_enabled": 1}, {}) == []
    assert "append-only" in redis_warnings(ABOUT | {"aof_enabled": 0}, {})[0]


@pytest.mark.parametrize(("text", "version"), [("7.0.15", (7, 0)), ("26.9.2.1", (26, 9)), ("24.8-lts", (24, 8))])
def test_versions_compare(text: str, version: tuple[int, int]) -> None:
    assert version_of(text) == version


def test_grants_and_acl_name_what_is_configured(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "replicator.toml").write_text(
        '[pipeline]\nname = "desk"\n[redis]\nstreams = ["trades", "orders"]\ntrim = "logged"\n'
        '[clickhouse]\ndatabase = "market"\n'
    )
    settings = load_settings(config, environ={"CLICKHOUSE_USER": "writer"})
    grants = clickhouse_grants(settings)
    assert "GRANT INSERT ON `market`.* TO `writer`" in grants
    acl = redis_acl(settings)
    assert "~trades ~orders ~replicator:desk:*" in acl
    assert acl.endswith("+xtrim +xpending +eval")

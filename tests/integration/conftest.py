"""A replicator configured for the real engines of this test process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from replicator_process import Replicator

from replicator.embedded.clickhouse import ClickHouse


@pytest.fixture
def replicator(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str
) -> Iterator[Replicator]:
    """Configured, not started; whatever it started is gone afterwards."""
    environment = {
        "REDIS_URL": redis_url,
        "CLICKHOUSE_ENDPOINT": clickhouse_server.endpoint,
        "CLICKHOUSE_USER": clickhouse_server.user,
        "CLICKHOUSE_PASSWORD": clickhouse_server.password,
    }
    with Replicator(
        directory=tmp_path, environment=environment, database=clickhouse_database, sections="[serve]\nport = 0"
    ) as found:
        yield found


@pytest.fixture
def source(redis_url: str) -> Iterator[redis.Redis]:
    """A producer's connection to the same Redis."""
    with redis.Redis.from_url(redis_url) as client:
        yield client

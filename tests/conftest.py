"""Fixtures every suite shares: the real engines, one of each per test process, and a clean place in them per test."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import hypothesis
import pytest
import redis

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey

hypothesis.settings.register_profile("suite", deadline=None)  # a machine may be busy
hypothesis.settings.load_profile("suite")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Run in the background by a shell, the suite would hand down an ignored Ctrl-C to the commands it interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def _valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    if image := os.environ.get("TEST_REDIS_IMAGE"):
        from container_engines import ContainerRedis

        with ContainerRedis(image=image) as server:
            yield cast(Valkey, server)
        return
    binary = os.environ.get("TEST_REDIS_BINARY")
    with Valkey(directory=tmp_path_factory.mktemp("redis"), binary=Path(binary) if binary else None) as server:
        yield server


@pytest.fixture
def redis_server(_valkey: Valkey) -> Valkey:
    """A running Redis (Valkey, or the program TEST_REDIS_BINARY names), empty at the start of each test; the test may kill and start it."""
    _valkey.start()
    with redis.Redis.from_url(_valkey.url) as client:
        client.flushall()
    return _valkey


@pytest.fixture
def redis_url(redis_server: Valkey) -> str:
    """The address of ``redis_server``."""
    return redis_server.url


@pytest.fixture(scope="session")
def _clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    user, password = "replicator", "s3cret'%&"
    if image := os.environ.get("TEST_CLICKHOUSE_IMAGE"):
        from container_engines import ContainerClickHouse

        with ContainerClickHouse(image=image, user=user, password=password) as server:
            yield cast(ClickHouse, server)
        return
    with ClickHouse(directory=tmp_path_factory.mktemp("clickhouse"), user=user, password=password) as server:
        yield server


@pytest.fixture
def clickhouse_server(_clickhouse: ClickHouse) -> ClickHouse:
    """A running ClickHouse (endpoint, user, password), shared by the tests of this process."""
    return _clickhouse.start()


@pytest.fixture
def clickhouse_database(clickhouse_server: ClickHouse) -> Iterator[str]:
    """A database of its own on ``clickhouse_server``, dropped after the test."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    clickhouse_server.execute(f"create database {name}")
    yield name
    clickhouse_server.start().execute(f"drop database if exists {name} sync")

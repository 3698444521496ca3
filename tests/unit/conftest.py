"""Databases for the tests of what is written as SQL: DuckDB empty or with a log, ClickHouse with a client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import clickhouse_connect
import duckdb
import pytest
from clickhouse_connect.driver.client import Client
from contract.fakes import FakeClickHouse, InlinePool
from log_room import LogRoom

from replicator.embedded.clickhouse import ClickHouse

MIGRATIONS = Path(__file__).parents[2] / "migrations"


@pytest.fixture
def clickhouse(clickhouse_server: ClickHouse, clickhouse_database: str) -> Iterator[Client]:
    with clickhouse_connect.get_client(
        dsn=clickhouse_server.endpoint,
        username=clickhouse_server.user,
        password=clickhouse_server.password,
        database=clickhouse_database,
        autogenerate_session_id=False,
    ) as client:
        yield client


@pytest.fixture
def log() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB with an empty change_log."""
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute((MIGRATIONS / "duckdb" / "0001_log.sql").read_text())
        yield connection


@pytest.fixture
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty DuckDB."""
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


@pytest.fixture
def server() -> FakeClickHouse:
    """A ClickHouse in memory."""
    return FakeClickHouse()


@pytest.fixture
def room(tmp_path: Path, server: FakeClickHouse) -> Iterator[LogRoom]:
    """Deliver over ``server``, turned by the test, each of its tasks done at once."""
    room = LogRoom(path=tmp_path / "log.duckdb", sink=server, pool=InlinePool())
    yield room
    room.database.close()

"""The views of a declared table at a start: left alone where they stand as they would be made, else made anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from replicator import state
from replicator.catalog import Catalog
from replicator.config import TableConfig, migrations_dir
from replicator.database import Database, DatabaseOptions

TABLE = TableConfig(name="trades", stream="trades", key=("id",), columns={"id": "VARCHAR", "n": "INTEGER"})
VIEWS = "select view_name, sql from duckdb_views() where view_name in ('trades', 'trades_log') order by 1"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=1))
    database.migrate(migrations_dir() / "duckdb")
    Catalog.open(database, [TABLE], ["trades"])
    yield database
    database.close()


def start(database: Database, monkeypatch: pytest.MonkeyPatch, table: TableConfig = TABLE) -> int:
    """How many tables had their views made."""
    made: list[object] = []
    with monkeypatch.context() as patched:
        shape = state._shape_views
        patched.setattr(state, "_shape_views", lambda *asked: (made.append(asked), shape(*asked)))
        Catalog.open(database, [table], ["trades"])
    return len(made)


def views(database: Database) -> list[tuple[object, ...]]:
    return database.session().rows(VIEWS)


def test_views_that_stand_are_left_alone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    before = views(database)
    assert len(before) == 2
    assert start(database, monkeypatch) == 0
    state.fold(database.session(), Catalog.open(database, [TABLE], ["trades"]).current["trades"], 7)
    folded = views(database)
    assert folded != before and start(database, monkeypatch) == 0 and views(database) == folded


@pytest.mark.parametrize(
    "harm",
    [
        "drop view trades",
        "drop view trades_log",
        "drop table trades_state",
        "update meta set value = 'of another release' where key = 'shape/trades'",
        "delete from meta where key = 'shape/trades'",
    ],
)
def test_what_is_gone_or_was_made_otherwise_is_made_anew(
    database: Database, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    before = views(database)
    database.session().execute(harm)
    assert start(database, monkeypatch) == 1 and views(database) == before
    assert start(database, monkeypatch) == 0
    assert database.session().rows("select * from trades_state") == []


def test_a_column_more_is_in_all_of_them(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    wider = evolve(TABLE, columns={**TABLE.columns, "price": "DECIMAL(18,2)"})
    assert start(database, monkeypatch, wider) == 1
    for source in ("trades", "trades_log", "trades_state", "trades_as_of(1)", "trades_as_of_time(now())"):
        database.session().rows(f"select price from {source}")
    assert start(database, monkeypatch, wider) == 0

"""When the state is folded: seldom while capture has a backlog, soon when it has none, wholly when all is calm."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.capture import CaptureProgress
from replicator.catalog import Catalog
from replicator.config import TableConfig, migrations_dir
from replicator.database import Database, DatabaseOptions
from replicator.state import FOLD_OFFSETS_MAX, applied_offset
from replicator.upkeep import FOLD_IDLE_SECONDS, FOLD_OFFSETS, Upkeep


@pytest.fixture
def upkeep(tmp_path: Path) -> Iterator[Upkeep]:
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=1))
    database.migrate(migrations_dir() / "duckdb")
    table = TableConfig(name="trades", stream="trades", key=("id",), columns={"id": "VARCHAR"})
    catalog = Catalog.open(database, [table], ["trades"])
    yield Upkeep(
        database=database,
        session=database.session(),
        catalog=catalog,
        progress=CaptureProgress(),
        stop=threading.Event(),
    )
    database.close()


def folded(upkeep: Upkeep, *, head: int, behind: bool) -> int:
    upkeep.progress.released_head, upkeep.progress.behind = head, behind
    upkeep.progress.commits += 1
    upkeep.turn()
    return applied_offset(upkeep.session, "trades")


def test_a_backlog_is_folded_in_the_largest_steps(upkeep: Upkeep) -> None:
    assert folded(upkeep, head=FOLD_OFFSETS_MAX - 1, behind=True) == 0
    assert folded(upkeep, head=FOLD_OFFSETS_MAX, behind=True) == FOLD_OFFSETS_MAX


def test_without_a_backlog_a_hundred_thousand_are_enough(upkeep: Upkeep) -> None:
    assert folded(upkeep, head=FOLD_OFFSETS - 1, behind=False) == 0
    assert folded(upkeep, head=FOLD_OFFSETS, behind=False) == FOLD_OFFSETS


def test_what_is_left_is_folded_when_all_is_calm(upkeep: Upkeep) -> None:
    assert folded(upkeep, head=7, behind=True) == 0
    upkeep._calm_since = time.monotonic() - FOLD_IDLE_SECONDS
    upkeep.turn()
    assert applied_offset(upkeep.session, "trades") == 7

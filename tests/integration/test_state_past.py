"""A table as it was: by offset, by time, by key, and as SQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from verify_room import VerifyRoom, shared_room

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.errors import UsageError
from replicator.state import fold
from replicator.state_past import rows_as_of


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, _clickhouse: ClickHouse, _valkey: Valkey) -> Iterator[VerifyRoom]:
    with shared_room(tmp_path_factory.mktemp("past"), _valkey.start(), _clickhouse.start()) as opened:
        yield opened


def folded_in_python(room: VerifyRoom, offset: int) -> dict[str, int]:
    """Key to the version that was current then."""
    current: dict[str, int] = {}
    sql = "select key, op, version from change_log where table_name = 'trades' and log_offset <= ? order by log_offset"
    for key, op, version in room.session.rows(sql, [offset]):
        if op == "d":
            current.pop(key, None)
        else:
            current[key] = version
    return current


@pytest.mark.parametrize("offset", [0, 1, 700, 1500, 2999, 3000])
def test_a_table_as_of_an_offset_is_what_folding_the_log_to_it_gives(room: VerifyRoom, offset: int) -> None:
    expected = folded_in_python(room, offset)
    assert dict(room.session.rows(f"select trade_id, _version from trades_as_of({offset})")) == expected
    past = rows_as_of(room.session, room.service.catalog.history("trades"), as_of=str(offset), limit=10_000)
    place = past.columns.index("trade_id"), past.columns.index("_version")
    assert {row[place[0]]: row[place[1]] for row in past.rows} == expected


def test_it_does_not_depend_on_how_far_the_state_is_folded(room: VerifyRoom) -> None:
    before = room.session.rows("select * from trades_as_of(1200) order by trade_id")
    fold(room.session, room.service.catalog.current["trades"], 2000)
    assert room.session.rows("select * from trades_as_of(1200) order by trade_id") == before
    now = room.session.rows("select * from trades order by trade_id")
    assert room.session.rows(f"select * from trades_as_of({room.service.changelog.head}) order by trade_id") == now


def test_a_time_means_the_last_offset_logged_by_then(room: VerifyRoom) -> None:
    [(at, offset)] = room.session.rows(
        "select logged_at, max(log_offset) from change_log group by logged_at order by 1 limit 1 offset 1"
    )
    history = room.service.catalog.history("trades")
    past = rows_as_of(room.session, history, as_of=f"{at.isoformat()}+00:00", limit=10_000)
    assert past.as_of_offset == offset
    by_time = room.session.rows(f"select trade_id, _version from trades_as_of_time(timestamp '{at}')")
    assert dict(by_time) == folded_in_python(room, offset)


def test_one_key_alone(room: VerifyRoom) -> None:
    expected = folded_in_python(room, 2000)
    key = sorted(expected)[3]
    past = rows_as_of(room.session, room.service.catalog.history("trades"), as_of="2000", key=key)
    assert [row[past.columns.index("_version")] for row in past.rows] == [expected[key]]


@pytest.mark.parametrize("as_of", ["3001", "yesterday"])
def test_what_is_no_offset_and_no_instant_is_refused(room: VerifyRoom, as_of: str) -> None:
    with pytest.raises(UsageError):
        rows_as_of(room.session, room.service.catalog.history("trades"), as_of=as_of)

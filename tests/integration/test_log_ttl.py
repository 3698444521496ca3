"""``log_ttl_days``: the history in ClickHouse expires, current rows do not, and what expired is taken for no loss."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from capture_room import wait_until
from service_room import ServiceRoom

from replicator.embedded.clickhouse import ClickHouse
from replicator.service_job import Jobs
from replicator.service_verify import Task, Verification
from replicator.verify_report import VerifyRequest

TRADES = """
[[tables]]
name = "trades"
key = ["trade_id"]
sums = ["n"]
[tables.columns]
trade_id = "VARCHAR"
n = "BIGINT"
"""


@pytest.fixture
def room(
    redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str, tmp_path: Path
) -> Iterator[ServiceRoom]:
    room = ServiceRoom(
        directory=tmp_path, redis_url=redis_url, server=clickhouse_server, database=clickhouse_database, tables=TRADES
    )
    yield room
    room.stop()
    room.client.close()


def restart(room: ServiceRoom, days: int) -> None:
    room.stop()
    path = room.directory / "config" / "replicator.toml"
    text = re.sub(r"log_ttl_days = \d+\n", "", path.read_text())
    path.write_text(text.replace("connect_timeout_sec", f"log_ttl_days = {days}\nconnect_timeout_sec"))
    room.start()
    head = room.service.changelog.head
    room.add(head + 1, head + 1)
    room.wait_delivered(head + 1)


def ttls(room: ServiceRoom) -> dict[str, str]:
    rows = room.asked("select name, engine_full from system.tables where database = '{d}' and engine_full != ''")
    return {name: found[1] for name, engine in rows if (found := re.search(r"TTL (.+?) SETTINGS", engine))}


def test_it_is_set_changed_and_removed_at_the_start_and_never_on_current_rows(room: ServiceRoom) -> None:
    for days in (30, 7):
        restart(room, days)
        assert ttls(room) == {
            "change_log": f"toDateTime(logged_at) + toIntervalDay({days})",
            "trades_log": f"toDateTime(_logged_at) + toIntervalDay({days})",
        }
    restart(room, 0)
    assert ttls(room) == {}
    room.asked("alter table {d}.trades_log modify ttl toDateTime(_logged_at) + interval 5 year")
    restart(room, 0)  # not ours
    assert set(ttls(room)) == {"trades_log"} and "Year" in ttls(room)["trades_log"]
    restart(room, 3)
    assert ttls(room)["trades_log"] == "toDateTime(_logged_at) + toIntervalDay(3)"


def test_declared_sums_are_compared_where_the_history_has_expired(room: ServiceRoom) -> None:
    room.start()
    for last in (30, 60):
        room.add(last - 29, last)
        room.wait_delivered(last)
    room.rows("update change_log set logged_at = logged_at - interval 10 day where log_offset <= 30")
    room.asked("delete from {d}.trades_log where _offset <= 30")  # as the TTL does
    restart(room, 2)
    jobs = Jobs(database=room.service.database, stop=room.service.stop)
    verification = Verification(service=room.service, jobs=jobs)
    done = verification.run(Task(request=VerifyRequest()))
    assert done["mismatches"] == 0 and done["rows"] == 31
    room.asked("alter table {d}.trades_log update n = n + 5 where _offset = 50 settings mutations_sync = 2")
    [trades] = [t for t in verification.run(Task(request=VerifyRequest()))["tables"] if t["table"] == "trades"]
    [found] = trades["breaks"]
    assert int(found["sink"]) == int(found["log"]) + 5


def test_what_has_expired_is_neither_a_mismatch_nor_a_loss(room: ServiceRoom) -> None:
    room.start()
    for last in (30, 60):
        room.add(last - 29, last)
        room.wait_delivered(last)
    room.rows("update change_log set logged_at = logged_at - interval 10 day where log_offset <= 30")
    room.stop()
    room.asked("delete from {d}.trades_log where _offset <= 30")  # as the TTL does
    room.asked("delete from {d}.replicator_batches where last_offset <= 30")  # and the ledger has to be mended
    restart(room, 2)
    wait_until(lambda: room.asked("select 1 from {d}.replicator_batches final where last_offset = 30"), "it mended")
    session = room.service.database.session()
    session.execute("update meta set value = (value::double - 100)::varchar where key = 'sink_started_at'")
    session.close()
    restart(room, 2)  # and ClickHouse was restarted, too
    jobs = Jobs(database=room.service.database, stop=room.service.stop)
    done = Verification(service=room.service, jobs=jobs).run(Task(request=VerifyRequest()))
    assert done["mismatches"] == 0 and done["rows"] == 32
    assert room.held == list(range(31, 63))
    assert room.rows("select * from operator_actions") == [] and room.rows("select * from failed_syncs") == []
    assert int(room.asked("select count() from {d}.trades")[0][0]) == 62

"""Rejected entries that are decoded again after what kept them out was mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from replicator_process import Replicator, until
from tables_room import TablesRoom

from replicator import Producer
from replicator.embedded.clickhouse import ClickHouse
from replicator.errors import SinkUnavailable
from replicator.operations import Operations, Selection

NARROW = """
[[tables]]
name = "orders"
key = ["id"]
[tables.columns]
id = "BIGINT"
n = "TINYINT"
text = "VARCHAR"
"""
WIDE = NARROW.replace("TINYINT", "BIGINT")
ALL = Selection(all=True)


@pytest.fixture
def room(
    tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str
) -> Iterator[TablesRoom]:
    with TablesRoom.open(tmp_path, redis_url, clickhouse_server, clickhouse_database, NARROW) as found:
        yield found


def operations(room: TablesRoom, *, running: bool = True) -> Operations:
    service = room.service
    parts: dict[str, Any] = {"database": service.database, "controls": service.controls, "ledger": service.ledger}
    return Operations(**parts, capture=service.capture if running else None)


def retry(room: TablesRoom, **options: Any) -> dict[int, tuple[str, str | None]]:
    """By id what became of it, and why it was kept."""
    done = operations(room).rejected_retry(ALL, actor="test", **options)
    return {row["id"]: (row["status"], row["kept"]) for row in done["rejected"]}


def test_what_fits_by_now_is_logged_once_at_a_new_offset(room: TablesRoom) -> None:
    room.put("orders", [{"id": 1, "n": 1000}, {"id": 2, "n": 2}, {"id": 3, "n": "x"}], id="given")
    room.redis.xadd("orders", {"id": "4", "n": "4000", "_op": "c"})
    room.wait_delivered()
    assert len(room.rejections()) == 3
    sent = room.session.rows("select entry_id from rejected_entries order by id")
    first = retry(room)
    assert {status for status, _ in first.values()} == {"open"}, "nothing has changed yet"
    room.reload(WIDE)
    found = retry(room)
    assert {k: status for k, (status, _) in found.items()} == {1: "resolved", 2: "open", 3: "resolved"}
    assert "n: " in str(found[2][1])
    room.wait_delivered()
    assert room.both("select id, n, _offset, _op from orders order by id") == [
        (1, 1000, 2, "u"),
        (2, 2, 1, "u"),
        (4, 4000, 3, "c"),
    ]
    assert room.both("select _entry_id, _event_id from orders_log where _offset > 1 order by _offset") == [
        (sent[0][0], "given"),
        (sent[2][0], None),
    ]
    assert list(retry(room)) == [2], "the others are closed"
    assert room.service.changelog.head == 3
    room.assert_verified()


def test_a_retry_after_a_table_was_declared_anew_waits_for_the_capture_that_knows_it(room: TablesRoom) -> None:
    room.put("orders", [{"id": 1, "n": 1000}])
    room.wait_logged()
    room.reload(WIDE)
    with room.service.capture.between_appends():  # as a rebuild does
        pass
    assert retry(room) == {1: ("resolved", None)}
    room.wait_delivered()
    assert room.both("select id, n from orders") == [(1, 1000)]


def test_a_readmitted_entry_claims_its_idempotency_key(room: TablesRoom) -> None:
    room.put("orders", [{"id": 1, "n": 1000}], id="given")
    room.wait_delivered()
    room.reload(WIDE)
    assert retry(room) == {1: ("resolved", None)}
    room.put("orders", [{"id": 1, "n": 1000}], id="given")
    room.put("orders", [{"id": 2, "n": 2}])
    room.wait_delivered()
    assert room.both("select id, n from orders_log order by _offset") == [(1, 1000), (2, 2)]
    assert room.service.progress.changes_repeated == 1


def test_what_was_sent_again_before_its_rejection_is_retried_is_not_logged_twice(room: TablesRoom) -> None:
    for _ in range(2):
        room.put("orders", [{"id": 1, "n": 1000}], id="given")
    room.wait_delivered()
    room.reload(WIDE)
    room.put("orders", [{"id": 1, "n": 1000}], id="given")
    room.wait_delivered()
    assert retry(room, as_new=True) == {1: ("resolved", None), 2: ("resolved", None)}
    room.wait_delivered()
    assert room.both("select id, n from orders_log") == [(1, 1000)]
    assert room.service.progress.changes_repeated == 2


def test_an_entry_overtaken_by_its_key_is_logged_only_as_new(room: TablesRoom) -> None:
    room.put("orders", [{"id": 1, "n": 1000}, {"id": 2, "n": 2000}, {"id": 1, "n": 1}])
    room.wait_delivered()
    room.reload(WIDE)
    assert retry(room) == {1: ("open", "its key has a newer change"), 2: ("resolved", None)}
    room.wait_delivered()
    assert room.both("select id, n from orders order by id") == [(1, 1), (2, 2000)]
    assert retry(room, as_new=True) == {1: ("resolved", None)}
    room.wait_delivered()
    assert room.both("select id, n from orders order by id") == [(1, 1000), (2, 2000)]
    room.assert_verified()


def test_rejected_rows_of_one_key_come_back_in_their_order(room: TablesRoom) -> None:
    room.put("orders", [{"id": 1, "n": 1000}, {"id": 1, "n": 2000}, {"id": 1, "n": 3000}])
    room.wait_delivered()
    room.reload(WIDE)
    retry(room)
    room.wait_delivered()
    assert room.both("select n from orders_log order by _offset") == [(1000,), (2000,), (3000,)]


def test_rows_of_an_arrow_entry_keep_their_place(room: TablesRoom) -> None:
    with Producer(room.environ["REDIS_URL"], key="id") as producer:
        producer.send_batch("orders", pa.table({"id": [1, 2, 3], "n": [1, 2000, 3], "text": ["a", "b", "c"]}))
    room.wait_delivered()
    room.reload(WIDE.replace('name = "orders"', 'name = "orders"\nencoding = "arrow"'))
    assert retry(room) == {1: ("resolved", None)}
    room.wait_delivered()
    rows = room.both("select id, n, text, _entry_row from orders_log order by id")
    assert rows == [(1, 1, "a", 0), (2, 2000, "b", 1), (3, 3, "c", 2)]
    assert room.both("select count(distinct _event_id) from orders_log") == [(3,)]


def test_without_a_running_service_a_retry_is_refused(room: TablesRoom) -> None:
    room.put("orders", [{"id": 1, "n": 1000}])
    room.wait_delivered()
    stopped = operations(room, running=False)
    assert len(stopped.rejected_retry(ALL, actor="test", dry_run=True)["rejected"]) == 1
    with pytest.raises(SinkUnavailable, match="not running"):
        stopped.rejected_retry(ALL, actor="test")


def test_the_command_retries_by_id_and_says_what_is_left(replicator: Replicator, source: redis.Redis) -> None:
    serve = replicator.sections
    replicator.configure(streams='["orders"]', sections=serve + NARROW)
    replicator.start()
    for k, n in ((1, 1000), (2, "x")):
        source.xadd("orders", {"data": json.dumps({"id": k, "n": n})})
    until(lambda: replicator.status()["rejected_entries"]["open"] == 2, "both are rejected")
    replicator.configure(sections=serve + WIDE)
    assert replicator.stop() == 0
    replicator.start()
    done = replicator.command("rejected", "retry", "1", "--json")
    assert (done.code, done.json["logged"]) == (0, 1), done.err
    left = replicator.command("rejected", "retry", "--all")
    assert left.code == 3
    assert "n: " in left.out
    assert [row["action"] for row in replicator.http("GET", "/api/v1/actions").json()] == ["rejected retry"] * 2
    assert replicator.stop() == 0

"""kill -9 at every durable step and at random, under a live producer: nothing lost, nothing doubled.

REPLICATOR_KILLS: how often each failpoint is met; ten times as many kills are random (default 3 and 30).
REPLICATOR_SEED: the seed of the random ones, printed when it was chosen here.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import pytest
from contract.fakes import wait_until
from pipeline_room import PipelineRoom
from storm_room import ORDERS, UNDER_WAY, EngineKiller, Producer, audit, check_between, killed, settle, wait_for_traffic

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey

KILLS = int(os.environ.get("REPLICATOR_KILLS", "3"))
SEED = int(os.environ.get("REPLICATOR_SEED", str(random.SystemRandom().randrange(1 << 32))))
PATIENCE_SECONDS = 60
"""How long a step that takes a second or two may take where many others run."""


@pytest.fixture
def room(tmp_path: Path, redis_url: str, clickhouse_server: ClickHouse, clickhouse_database: str) -> PipelineRoom:
    return PipelineRoom(
        directory=tmp_path,
        redis_url=redis_url,
        clickhouse=clickhouse_server,
        database=clickhouse_database,
        endpoint=clickhouse_server.endpoint,
        streams=("trades", "orders"),
        tables=ORDERS,
    )


def test_a_kill_at_each_durable_step_loses_and_doubles_nothing(room: PipelineRoom) -> None:
    met = set()
    with Producer(room).adding():
        for time_ in range(KILLS):
            for point in UNDER_WAY:
                if killed(room.child(f"{point}=kill@{time_ + 1}"), 20):
                    met.add(point)
                check_between(room)
    settle(room)
    audit(room)
    assert met == set(UNDER_WAY)


def test_a_kill_in_a_fold_leaves_current_rows_right(room: PipelineRoom) -> None:
    with Producer(room).adding():
        wait_for_traffic(room, 60)
    assert killed(room.child("fold.inside=kill"), 40)
    settle(room)
    audit(room)


def test_kills_in_the_migrations_of_both_databases_and_among_the_tables_made(room: PipelineRoom) -> None:
    for nth in range(1, 4):
        assert killed(room.child(f"migration.inside=kill@{nth}"), 20)
    for point in ("sink_migration.inside", "alter.inside"):
        for nth in range(1, 3):
            assert killed(room.child(f"{point}=kill@{nth}"), 20), (point, nth)
    room.add(5)
    settle(room)
    with room.file() as session:
        room.check_sink(session)


def test_random_kills_of_service_and_engines_lose_and_double_nothing(room: PipelineRoom, redis_server: Valkey) -> None:
    sys.stdout.write(f"REPLICATOR_SEED={SEED}\n")
    chance = random.Random(SEED)
    engines = EngineKiller(room, redis_server, chance)
    with Producer(room).adding():
        child = room.child()
        wait_for_traffic(room, 20)
        for _ in range(10 * KILLS):
            time.sleep(chance.random() * 0.8)  # when it strikes is part of the storm
            if chance.random() < 0.5:
                engines.once()
            else:
                child.kill()
                child.join(10)
                check_between(room)
                child = room.child()
        child.kill()
        child.join(10)
    sys.stdout.write(f"engines killed: {engines.killed}\n")
    settle(room)
    audit(room, sink_killed={"clickhouse", "both"} & {*engines.killed} != set())


def refuse_poison(room: PipelineRoom) -> None:
    room.clickhouse.execute(
        f"alter table {room.database}.change_log add constraint clean check not position(assumeNotNull(payload), 'poison')"
    )


def test_kills_between_the_children_of_a_bisected_batch(room: PipelineRoom) -> None:
    settle(room)
    refuse_poison(room)
    with Producer(room, poison=6).adding():
        for point in ("bisect.between_children", "park.after"):
            for _ in range(2):
                assert killed(room.child(f"{point}=kill"), 20), point
                check_between(room)
    settle(room)
    with room.file() as session:
        poisoned = {o for (o,) in session.rows("select log_offset from change_log where payload like '%poison%'")}
        ranges = session.rows("select first_offset, last_offset from failed_syncs where status = 'open'")
        copies = {o for (o,) in session.rows("select log_offset from parked_changes")}
    assert poisoned
    assert copies == poisoned
    # A range of one row reaches back over the offsets of other tables to the end of the range before it.
    assert sorted(len([o for o in poisoned if first <= o <= last]) for first, last in ranges) == [1] * len(poisoned)
    audit(room, poisoned)


def delivered_rows(room: PipelineRoom) -> int:
    """How many rows the children have delivered and recorded, by what they logged."""
    events = [json.loads(line) for line in room.child_log.splitlines()]
    return sum(event["rows"] for event in events if event["event"] == "batch_delivered")


def test_a_kill_after_a_redrive_was_sent(room: PipelineRoom) -> None:
    child = room.child()
    with Producer(room).adding():
        wait_for_traffic(room, 60)
    wait_until(lambda: delivered_rows(room) == sum(map(room.source.xlen, room.streams)), PATIENCE_SECONDS)
    room.clickhouse.kill()  # while it takes nothing: what is then sent meets nobody
    with Producer(room).adding():
        wait_until(lambda: "circuit_opened" in room.child_log, PATIENCE_SECONDS)
        child.kill()
        child.join(10)
        room.clickhouse.start()
        assert killed(room.child("redrive.after_send=kill"), PATIENCE_SECONDS)
        check_between(room)
    settle(room)
    audit(room)
    with room.file() as session:
        assert {s for (s,) in session.rows("select status from failed_syncs")} == {"resolved"}

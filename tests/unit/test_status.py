"""The verdict follows from the numbers, in words; what is unknown stays unknown; lag tells of everything parked."""

from __future__ import annotations

import json

import pytest
from attrs import evolve

from replicator.changelog import StreamPosition
from replicator.model import EntryId
from replicator.source import StreamDescription
from replicator.status import (
    EngineStatus,
    FailedStatus,
    GapStatus,
    LogStatus,
    LoopStatus,
    RejectedStatus,
    Runway,
    SinkStatus,
    State,
    StatusReport,
    StreamStatus,
    TableStatus,
    VerifyStatus,
    with_lag,
)
from replicator.status_probe import STALE_SECONDS, SinkFacts, backlog_entries, engine_status

WELL = StatusReport(
    pipeline="main",
    running=True,
    database="d.duckdb",
    log=LogStatus(head_offset=10, changes=10, bytes=1),
    sink=SinkStatus(checkpoint_offset=10, confirmed_offset=10, lag_changes=0, lag_seconds=0.0, circuit="closed"),
    tables=[TableStatus(table="trades", checkpoint_offset=10, circuit="closed")],
    failed_syncs=FailedStatus(open=0, rows=0),
    rejected_entries=RejectedStatus(open=0),
    gaps=GapStatus(open=0, entries_lost=0),
    redis=EngineStatus(reachable=True),
    clickhouse=EngineStatus(reachable=True),
    loops=[LoopStatus(loop="capture", running=True, heartbeat_seconds_ago=0.1)],
)


def table(**fields: object) -> list[TableStatus]:
    return [evolve(WELL.tables[0], **fields)]


def stream(stalled_seconds: float) -> list[StreamStatus]:
    return [StreamStatus(stream="s", backlog_entries=7, stalled_seconds=stalled_seconds)]


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({}, State.OK, ""),
        ({"redis": EngineStatus(reachable=None)}, State.OK, ""),
        ({"redis": EngineStatus(reachable=False, error="Redis is away")}, State.DEGRADED, "Redis is away"),
        ({"redis": EngineStatus(reachable=False, refused=True, error="no ACL")}, State.FAILED, "no ACL"),
        ({"clickhouse": EngineStatus(reachable=False)}, State.DEGRADED, "ClickHouse does not answer"),
        ({"tables": table(circuit="open", next_try_seconds=5)}, State.DEGRADED, "next probe in 5 s"),
        ({"tables": table(last_error="refused", attempt=1)}, State.DEGRADED, "failed once and tries again: refused"),
        ({"tables": table(last_error="refused", attempt=2)}, State.DEGRADED, "failed 2 times"),
        (
            {"tables": table(last_error="row 3", attempt=0)},
            State.DEGRADED,
            "delivery of trades failed and goes on: row 3",
        ),
        ({"tables": table(stopped="other shape")}, State.FAILED, "delivery of trades is stopped: other shape"),
        ({"tables": table(pending=1, stalled_seconds=40.0)}, State.DEGRADED, "1 row of trades is due and none"),
        ({"tables": table(pending=5, stalled_seconds=40.0)}, State.DEGRADED, "5 rows of trades are due and none"),
        ({"tables": table(pending=5, stalled_seconds=400.0)}, State.FAILED, "for 400 s, though the loop is alive"),
        ({"tables": table(pending=5, stalled_seconds=20.0)}, State.OK, ""),
        ({"streams": stream(31.0)}, State.DEGRADED, "7 entries of s wait and none was logged for 31 s"),
        ({"streams": stream(301.0)}, State.FAILED, "none was logged"),
        ({"failed_syncs": FailedStatus(open=1, rows=7)}, State.DEGRADED, "7 parked rows in 1 failed sync: "),
        ({"rejected_entries": RejectedStatus(open=1)}, State.DEGRADED, "1 entry could not be logged: "),
        ({"gaps": GapStatus(open=1, entries_lost=1)}, State.FAILED, "1 entry left Redis before it was read (1 gap)"),
        ({"rejected_entries": RejectedStatus(open=3)}, State.DEGRADED, "replicator rejected list"),
        ({"gaps": GapStatus(open=1, entries_lost=9)}, State.FAILED, "9 entries left Redis"),
        ({"gaps": GapStatus(open=1, entries_lost=None)}, State.FAILED, "an unknown number of entries"),
        ({"verify": VerifyStatus(mismatches=2)}, State.FAILED, "2 differences between log and ClickHouse"),
        ({"paused": ["capture"]}, State.DEGRADED, "replicator resume capture"),
        ({"paused": ["table:trades"]}, State.DEGRADED, "table trades is paused: `replicator resume table:trades`"),
        ({"gaps": GapStatus(open=1, entries_lost=4)}, State.FAILED, "(1 gap)"),
        ({"runway": Runway(disk_seconds=1800)}, State.DEGRADED, "full in 30 min"),
        ({"runway": Runway(redis_seconds=60)}, State.FAILED, "full in 1 min"),
        ({"runway": Runway(disk_seconds=1e9, catch_up_seconds=5)}, State.OK, ""),
        ({"loops": [LoopStatus(loop="deliver", running=False, error="boom")]}, State.FAILED, "deliver is down"),
        (
            {"loops": [LoopStatus(loop="deliver", running=False, waits_for_engine=True)]},
            State.DEGRADED,
            "deliver is down",
        ),
        (
            {"loops": [LoopStatus(loop="capture", running=True, heartbeat_seconds_ago=31)]},
            State.FAILED,
            "no sign of life for 31 s",
        ),
        ({"sink": evolve(WELL.sink, lag_changes=5, lag_seconds=62.0)}, State.DEGRADED, "has waited 62 s"),
        ({"sink": evolve(WELL.sink, lag_changes=5, lag_seconds=60.0)}, State.OK, ""),
        ({"sink": evolve(WELL.sink, lag_changes=None, lag_seconds=None)}, State.OK, ""),
    ],
)
def test_the_verdict_follows_from_the_numbers(change: dict[str, object], state: State, words: str) -> None:
    report = evolve(WELL, **change)
    assert report.state is state
    assert words in "; ".join(reason.text for reason in report.reasons)
    assert bool(report.reasons) is (state is not State.OK)


def test_the_worst_reason_comes_first_and_decides() -> None:
    report = evolve(WELL, paused=["capture"], gaps=GapStatus(open=1, entries_lost=1))
    assert report.state is State.FAILED
    assert "left Redis" in report.reasons[0].text
    assert len(report.reasons) == 2


@pytest.mark.parametrize(("state", "code"), [(State.OK, 0), (State.DEGRADED, 1), (State.FAILED, 2)])
def test_exit_codes_are_those_of_monitoring_plugins(state: State, code: int) -> None:
    assert state.exit_code == code


# ── lag ──


@pytest.mark.parametrize(
    ("head", "checkpoint", "parked", "age", "changes", "seconds"),
    [
        (10, 10, 0, None, 0, 0.0),
        (10, 7, 0, 2.5, 3, 2.5),
        (10, 10, 4, 99.0, 4, 99.0),
        (10, 7, 4, None, 7, None),
        (None, 7, 0, 1.0, None, 1.0),
        (10, None, 0, 1.0, None, 1.0),
        (10, 10, None, None, None, None),
    ],
    ids=["none", "behind", "parked only", "age unknown", "head unknown", "checkpoint unknown", "parked unknown"],
)
def test_lag_counts_what_is_parked_and_is_unknown_when_a_part_is(
    head: int | None,
    checkpoint: int | None,
    parked: int | None,
    age: float | None,
    changes: int | None,
    seconds: float | None,
) -> None:
    sink = with_lag(WELL, head=head, checkpoint=checkpoint, parked=parked, age=age).sink
    assert (sink.lag_changes, sink.lag_seconds) == (changes, seconds)


def test_the_json_form_has_the_documented_fields_and_no_guess() -> None:
    report = StatusReport(pipeline="main", running=False, database="d.duckdb").as_json()
    wanted = {
        "state",
        "reasons",
        "streams",
        "log",
        "sink",
        "tables",
        "failed_syncs",
        "rejected_entries",
        "gaps",
        "verify",
    }
    assert report.keys() >= wanted | {"runway"}
    assert report["log"] == {"oldest_offset": None, "head_offset": None, "changes": None, "bytes": None}
    sink = {"checkpoint_offset", "confirmed_offset", "lag_changes", "lag_seconds", "circuit"}
    assert report["sink"] == dict.fromkeys(sink)
    assert report["failed_syncs"]["open"] is None
    seconds = dict.fromkeys(("disk_seconds", "redis_seconds", "catch_up_seconds"))
    assert report["runway"] == {**seconds, "disk": "unknown", "redis": "unknown", "catch_up": "unknown"}
    assert json.loads(json.dumps(report)) == report


# ── what the engines said ──


def position(entry_id: str, read: int) -> StreamPosition:
    return StreamPosition(stream="s", last_entry_id=EntryId(entry_id), entries_read=read)


def about(last: str, first: str | None, length: int, added: int | None) -> StreamDescription:
    return StreamDescription(
        exists=True,
        length=length,
        last_entry_id=EntryId(last),
        first_entry_id=EntryId(first) if first else None,
        entries_added=added,
    )


@pytest.mark.parametrize(
    ("where", "described", "backlog"),
    [
        (position("5-0", 5), None, None),
        (position("5-0", 5), StreamDescription(exists=False), 0),
        (position("5-0", 5), about("5-0", "1-0", 5, 5), 0),
        (position("5-0", 5), about("9-0", "1-0", 9, 9), 4),
        (position("5-0", 5), about("9-0", "8-0", 2, 9), 2),
        (position("5-0", 5), about("9-0", None, 0, 9), 0),
        (position("5-0", 5), about("9-0", "1-0", 9, None), None),
        (None, about("9-0", "1-0", 9, 9), 9),
    ],
    ids=["silent", "no stream", "all read", "behind", "trimmed", "trimmed to nothing", "old server", "never read"],
)
def test_backlog_is_what_redis_still_holds_unread(
    where: StreamPosition | None, described: StreamDescription | None, backlog: int | None
) -> None:
    assert backlog_entries(where, described) == backlog


def test_an_old_answer_says_nothing_of_now() -> None:
    facts = SinkFacts(asked_at=100.0, version="26.9")
    assert engine_status(None, clock=100.0).reachable is None
    assert engine_status(facts, clock=101.0).reachable is True
    stale = engine_status(facts, clock=101.0 + STALE_SECONDS)
    assert stale.reachable is False
    assert "no answer for 16 s" in (stale.error or "")

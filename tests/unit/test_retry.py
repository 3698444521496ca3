"""One table from error to decision: every code once, every decision with a sentence."""

from __future__ import annotations

import pytest

from replicator import errors, retry
from replicator.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
    ReplicatorError,
    SinkMisshapen,
    SinkRefused,
    SinkRejected,
    SinkTurned,
    SinkUnavailable,
)
from replicator.model import ParkReason
from replicator.retry import (
    SENTENCES,
    Decision,
    Ladder,
    column_at_fault,
    decide,
    kind_of_code,
    sentence,
    sentence_of_parked,
    told,
)


@pytest.mark.parametrize(
    ("code", "message", "inserting", "kind"),
    [
        *((code, "", True, SinkUnavailable) for code in (202, 210, 241, 242, 252, 425, 999)),
        *((code, "", True, OutcomeUnknown) for code in (159, 209, 319)),
        *((code, "", False, SinkUnavailable) for code in (159, 209, 319)),
        *((code, "", True, SinkRejected) for code in (6, 27, 53, 69, 70, 131, 321, 349, 407, 469, 691)),
        *((code, "", True, SinkMisshapen) for code in (16, 44, 47, 60, 81)),
        *((code, "", True, SinkRefused) for code in (192, 193, 497, 516)),
        (252, "Too many parts (300). Merges are processing significantly slower than inserts", True, SinkUnavailable),
        (252, "Too many partitions for single INSERT block", True, SinkRejected),
        (424242, "", True, SinkUnavailable),
    ],
)
def test_each_code_has_its_kind(code: int, message: str, inserting: bool, kind: type[ReplicatorError]) -> None:
    assert kind_of_code(code, message, inserting=inserting) is kind


def test_no_code_stands_in_two_lists() -> None:
    lists = [retry.REJECTED_CODES, retry.MISSHAPEN_CODES, retry.REFUSED_CODES, retry.OUTAGE_CODES]
    assert sum(map(len, lists)) == len(frozenset().union(*lists))


@pytest.mark.parametrize(
    ("error", "repeats", "decision"),
    [
        (SinkUnavailable("refused"), 0, Decision.WAIT),
        (SinkUnavailable("refused"), 99, Decision.WAIT),
        (SinkUnavailable("overload", code=202), 99, Decision.WAIT),
        (SinkUnavailable("what is this", code=4242), 1, Decision.WAIT),
        (SinkUnavailable("what is this", code=4242), 2, Decision.SPLIT),
        (OutcomeUnknown("reset"), 99, Decision.ASK),
        (SinkRejected("bad row", code=53), 0, Decision.SPLIT),
        (SinkMisshapen("no table", code=60), 99, Decision.STOP_TABLE),
        (SinkRefused("password", code=516), 99, Decision.STOP),
        (DatabaseUnavailable("locked"), 99, Decision.AGAIN),
    ],
)
def test_each_kind_has_its_decision(error: ReplicatorError, repeats: int, decision: Decision) -> None:
    assert decide(error, repeats=repeats) is decision


@pytest.mark.parametrize(
    "error", [SinkRejected("bad query", code=53), SinkUnavailable("what is this", code=4242)], ids=["listed", "not"]
)
def test_no_error_of_a_question_splits_a_batch(error: ReplicatorError) -> None:
    assert decide(error, repeats=99, asked=True) is Decision.WAIT


def test_whatever_reaches_deliver_has_a_decision_and_a_sentence() -> None:
    for name in dir(errors):
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, ReplicatorError):
            assert decide(kind("x"), repeats=0) in Decision
            assert sentence(kind("x"))


def test_an_operator_reads_the_sentence_first_and_the_raw_text_behind_it() -> None:
    error = SinkUnavailable("HTTPConnectionPool: Max retries exceeded", hint="start ClickHouse")
    assert told(error) == f"{SENTENCES[SinkUnavailable]}: HTTPConnectionPool: Max retries exceeded (start ClickHouse)"
    assert told(ValueError("ours")) == "ours", "no sentence is made up"


def test_no_sentence_says_what_is_not_so() -> None:
    assert told(SinkRejected("bad query", code=53), asked=True) == "bad query", "a question parks no rows"
    assert "overloaded" not in sentence(SinkTurned("the sink has gone back")), "it answers, and is another"


@pytest.mark.parametrize(
    ("reason", "code", "attempts", "kind"),
    [
        (ParkReason.OUTAGE, None, 5, SinkUnavailable),
        (ParkReason.OUTAGE, "202", 5, SinkUnavailable),
        (ParkReason.OUTAGE, "159", 5, OutcomeUnknown),
        (ParkReason.OUTAGE, "516", 6, SinkRefused),
        (ParkReason.OUTAGE, "60", 6, SinkMisshapen),
        (ParkReason.REJECTED, "469", 1, SinkRejected),
        (ParkReason.REJECTED, "ArrowInvalid", 1, SinkRejected),
        (ParkReason.REJECTED, "4242", 3, SinkRejected),
        (ParkReason.OUTAGE, None, 0, None),
        (ParkReason.LOST, None, 0, None),
    ],
)
def test_what_is_parked_has_the_sentence_of_what_it_met(
    reason: ParkReason, code: str | None, attempts: int, kind: type[ReplicatorError] | None
) -> None:
    assert sentence_of_parked(reason, code, attempts) == (SENTENCES[kind] if kind else None)


@pytest.mark.parametrize(
    ("message", "column"),
    [
        (
            "String too long for type FixedString(3): while converting source column `'abc'` to destination column f. (X)",
            "f",
        ),
        (
            "Cannot parse 'x': while converting column `my col` from type String to type Int64: (While executing",
            "my col",
        ),
        ("Constraint `c` is violated at row 1. Expression: (n > 0). Column values: n = 0. (VIOLATED_CONSTRAINT)", "n"),
        ("Constraint `c` is violated. Column values: a = -1, `f g` = 'q\\0', h = NULL. (V)", "a, f g, h"),
        ("Constraint `c` is violated. Column values: f = 'it\\'s, secret = 1', n = 0. (V)", "f, n"),
        ("Constraint `c` is violated. Column values: f = 'cut short, secret = 1", "f"),
        ("Constraint `c` is violated. Column values: t = [1, 2], m = {'k':'v, x = 1'}. (V)", "t, m"),
        ("Cannot parse 'while converting column `secret` from type a' as Int64", None),
        ("Too many partitions for single INSERT block", None),
    ],
)
def test_the_column_at_fault_is_what_the_message_names_and_never_a_value(message: str, column: str | None) -> None:
    assert column_at_fault(message) == column


def test_the_ladder_is_climbed_exactly_as_configured() -> None:
    ladder = Ladder(waits_seconds=[1, 2, 5], retries_max=5)
    assert [ladder.wait_seconds(retry) for retry in range(7)] == [1, 2, 5, 5, 5, None, None]
    assert ladder.last_seconds == 5
    assert Ladder(waits_seconds=[1], retries_max=0).wait_seconds(0) is None

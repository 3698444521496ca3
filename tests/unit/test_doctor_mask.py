"""Only words that are ours, or ordinary to errors, remain of a text: a value never does, whatever it looks like."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.doctor_mask import BLOT, ORDINARY, mask, mask_fields, mask_literals, our_words

SECRETISH = "Zyxwvutqq"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("price: 189.25 does not fit", "price: … does not fit"),
        ("Code: 27. DB::Exception: Cannot parse 'Zyxwvutqq'", "Code: 27. DB::Exception: Cannot parse '…'"),
        ("connection to 127.0.0.1 port 8123 refused", "connection to ….… port 8123 refused"),
        ("batch_delivered", "batch_delivered"),
        ("trades is stopped: Zyxwvutqq 4242", "trades is stopped: … …"),
        ("stopped\x1bnow", "stopped now"),
        ("", ""),
    ],
)
def test_what_remains(text: str, masked: str) -> None:
    assert mask(text, ["trades"]) == masked


@given(st.text())
def test_no_word_that_is_not_known_remains(text: str) -> None:
    known = our_words() | ORDINARY
    assert all(word.lower() in known for word in re.findall(r"[^\W\d_]\w*", mask(text)))


@given(st.integers(min_value=0), st.sampled_from(["price", "quantity is", "key", "=", "("]))
def test_no_number_remains_where_it_may_be_a_value(number: int, before: str) -> None:
    assert mask(f"{before} {number}") == f"{mask(before)} {BLOT}"


def test_a_statement_keeps_its_shape_and_no_literal() -> None:
    sql = "CREATE TABLE t (`id` String, CONSTRAINT c CHECK id != 'Zyxwvutqq') ENGINE = MergeTree ORDER BY 'table'"
    assert mask_literals(sql) == sql.replace("Zyxwvutqq", BLOT)


def test_documents_keep_their_numbers_and_what_is_named_safe() -> None:
    found = mask_fields({"n": 5, "ok": True, "at": SECRETISH, "deep": [{"text": SECRETISH}], "none": None}, (), {"at"})
    assert found == {"n": 5, "ok": True, "at": SECRETISH, "deep": [{"text": BLOT}], "none": None}

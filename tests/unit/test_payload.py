"""Payloads looked at one by one: JSON by RFC 8259 or a reason, and never a digit less."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.payload import strict_json


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ('{"a": 1, "b": [1.5, null]}', '{"a": 1, "b": [1.5, null]}'),
        ('{"a":9007199254740992}', '{"a":9007199254740992}'),
        ('{"a":9007199254740993}', '{"a":"9007199254740993"}'),
        ('{"a":-12345678901234567890,"b":"x"}', '{"a":"-12345678901234567890","b":"x"}'),
        ('{"a":0.1000000000000000055511}', '{"a":"0.1000000000000000055511"}'),
        ('{"a":1e400}', '{"a":"1e400"}'),
        ('{"a":[{"b":12345678901234567890}]}', '{"a":[{"b":"12345678901234567890"}]}'),
        ('{"a":12345678901234567890,"a":1}', '{"a":"12345678901234567890","a":1}'),
        ('{"a":"1234567890123456789012"}', '{"a":"1234567890123456789012"}'),
        (
            '{"n":12345678901234567890,"t":"\\ud83d\\ude00 \\u0000 é"}',
            '{"n":"12345678901234567890","t":"😀 \\u0000 é"}',
        ),
    ],
)
def test_numbers_that_a_double_does_not_hold_become_strings(payload: str, expected: str) -> None:
    assert strict_json(payload) == expected


def test_a_number_of_thousands_of_digits_is_kept() -> None:
    digits = "7" * 20_000
    for number in (digits, f"0.{digits}"):
        assert strict_json(f'{{"a":{number}}}') == f'{{"a":"{number}"}}'


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("[1]", "not a JSON object"),
        ('{"a":NaN}', "NaN"),
        ('{"a":-Infinity}', "-Infinity"),
        ('{"a":1,}', "Illegal|Expecting"),
        ('{"a":[1,]}', "Illegal|Expecting"),
        ("{'a':1}", "Expecting"),
        ('{"a":01}', "Expecting"),
        ('{"a":1} {"b":2}', "Extra data"),
        ('{"a":"\x01"}', "control"),
        ('{"a":12345678901234567890,"b":"\\ud800"}', "surrogate"),
        ("", "Expecting"),
    ],
)
def test_what_is_no_json_object_has_a_reason(payload: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        strict_json(payload)


@pytest.mark.parametrize("depth", [100, 300, 900, 5_000, 200_000])
@pytest.mark.parametrize("inner", ["1", "12345678901234567890"])
def test_deep_nesting_is_written_or_refused_but_breaks_nothing(depth: int, inner: str) -> None:
    payload = '{"a":' + "[" * depth + inner + "]" * depth + "}"
    try:
        assert strict_json(payload).replace('"12345678901234567890"', inner) == payload
    except ValueError as error:
        assert "deeply" in str(error)
        assert depth > 200


NUMBERS = st.one_of(
    st.integers(),
    st.integers(min_value=-(10**60), max_value=10**60),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.text(st.characters(exclude_categories=["Cs"])), NUMBERS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)


def written(value: object) -> str:
    """JSON with every digit, as a producer may send it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() and abs(value.adjusted()) < 400 else "0"
    return json.dumps(value)


def same(sent: object, kept: object) -> bool:
    if isinstance(sent, dict):
        return isinstance(kept, dict) and sent.keys() == kept.keys() and all(same(sent[k], kept[k]) for k in sent)
    if isinstance(sent, list):
        return isinstance(kept, list) and len(sent) == len(kept) and all(map(same, sent, kept))
    if isinstance(sent, Decimal) and isinstance(kept, str | Decimal):
        return Decimal(kept) == sent
    return type(sent) is type(kept) and sent == kept


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
def test_every_value_keeps_its_digits(value: dict[str, object]) -> None:
    payload = written(value)
    as_sent = json.loads(payload, parse_int=Decimal, parse_float=Decimal)
    kept = strict_json(payload)
    assert same(as_sent, json.loads(kept, parse_int=Decimal, parse_float=Decimal))
    for number in _numbers(json.loads(kept)):
        assert abs(number) <= 2**53 or isinstance(number, float)


def _numbers(value: object) -> list[int]:
    if isinstance(value, dict):
        return [n for each in value.values() for n in _numbers(each)]
    if isinstance(value, list):
        return [n for each in value for n in _numbers(each)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []

"""Infer: propose `[[tables]]` for what a stream holds, with the evidence as comments. Pure.

Guarantees: every value of the sample fits the type proposed for its column; a key is proposed only from columns that
every change has. What cannot be a column is a comment that says why. A proposal, not a decision: values still to come it cannot know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from math import isfinite
from typing import Any

from attrs import define, field, frozen

from replicator.column_types import parse_type

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NAMED_FLOATS = ("NaN", "Infinity", "-Infinity")
_INSTANT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:\.([0-9]{1,9}))?(Z|[+-](?:0[0-9]|1[0-5])(?::?[0-5][0-9])?)?"
)
_COLUMN_NAME = re.compile(r"[^\W_][\w -]*")
"""As the configuration takes it."""
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_FIRST_YEAR, _LAST_YEAR, _LAST_YEAR_IN_NANOSECONDS = 1900, 2299, 2262
"""What both sides hold (see `typed_text`); the edges themselves are left out, as an offset could cross them."""
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_INTEGERS = ("INTEGER", "BIGINT", "HUGEINT")
_KEY_NAME = re.compile(r"^(id|key|uuid)$|_(id|key|no|number|uuid)$")


@define
class ColumnEvidence:
    """What the sample says of one column."""

    name: str
    seen: int = 0
    nulls: int = 0
    kinds: dict[str, int] = field(factory=dict)
    values: set[str] = field(factory=set)
    low: int | None = None
    high: int | None = None
    whole_digits: int = 1
    scale: int = 0
    nanoseconds: bool = False
    last_year: int = 0
    """Of the instants."""
    unquoted: bool = False
    """Some value was a JSON number or boolean, which a VARCHAR does not take."""
    doubles: bool = True
    """Every number is the shortest text of a double, so that DOUBLE keeps its digits."""
    example: str = ""

    def add(self, value: Any) -> None:
        """Take one value of the column: None, bool, a number as text (`Number`), text, or JSON of something nested."""
        self.seen += 1
        if value is None:
            self.nulls += 1
            return
        text = _text_of(value)
        self.example = self.example or text[:40]
        self.values.add(text)
        self.unquoted |= isinstance(value, bool | _NumberText)
        kind = self._kind(value, text)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def _kind(self, value: Any, text: str) -> str:
        if isinstance(value, bool):
            return "boolean"
        if isinstance(value, dict | list):
            return "nested"
        if _NUMBER.fullmatch(text):
            return self._number_kind(text)
        return self._text_kind(text)

    def _number_kind(self, text: str) -> str:
        nearest = float(text)
        self.doubles &= isfinite(nearest) and Decimal(repr(nearest)) == Decimal(text)
        if not _INTEGER.fullmatch(text):
            return self._decimal(text)
        number = int(text)
        self.low = number if self.low is None else min(self.low, number)
        self.high = number if self.high is None else max(self.high, number)
        self.whole_digits = max(self.whole_digits, len(text.lstrip("-")))
        return "integer"

    def _decimal(self, text: str) -> str:
        digits = Decimal(text).as_tuple()
        exponent = int(digits.exponent)
        self.scale = max(self.scale, -exponent)
        self.whole_digits = max(self.whole_digits, len(digits.digits) + exponent)
        return "decimal" if "e" not in text.lower() else "float"

    def _text_kind(self, text: str) -> str:
        if text in ("true", "false"):
            return "boolean"
        if text in _NAMED_FLOATS:
            return "named float"
        if _UUID.fullmatch(text):
            return "uuid"
        if _DATE.fullmatch(text):
            return "date" if _year(text, _FIRST_YEAR - 1, _LAST_YEAR + 1) else "text"
        instant = _INSTANT.fullmatch(text)
        year = instant and _year(f"{instant[1]}T{instant[2]}", _FIRST_YEAR, _LAST_YEAR)
        if not instant or not year:
            return "text"
        self.nanoseconds |= len((instant[3] or "").rstrip("0")) > 6
        self.last_year = max(self.last_year, year)
        return "instant"

    @property
    def type_name(self) -> str:
        """The DuckDB type that holds every value seen."""
        kinds = set(self.kinds)
        found = self._single(*kinds) if len(kinds) == 1 else self._number(kinds)
        return found or ("JSON" if "nested" in kinds or self.unquoted else "VARCHAR")

    def _single(self, kind: str) -> str | None:
        if kind == "instant" and self.nanoseconds:
            return "TIMESTAMP_NS" if self.last_year < _LAST_YEAR_IN_NANOSECONDS else None
        simple = {"boolean": "BOOLEAN", "uuid": "UUID", "date": "DATE", "instant": "TIMESTAMP"}
        return simple.get(kind) or self._number({kind})

    def _number(self, kinds: set[str]) -> str | None:
        """The type of numbers; None where there are others among them, or digits that no type keeps."""
        if kinds == {"integer"}:
            return next((t for t in _INTEGERS if self._fits(t)), None)
        numbers = {"integer", "decimal", "float"}
        if kinds and kinds <= {"integer", "decimal"} and (exact := self._exact_number()):
            return exact
        return "DOUBLE" if kinds & numbers and kinds <= {*numbers, "named float"} and self.doubles else None

    def _fits(self, type_name: str) -> bool:
        low, high = parse_type(type_name).bounds
        return self.low is not None and self.high is not None and low <= self.low and self.high <= high

    def _exact_number(self) -> str | None:
        """A decimal with room to grow: DECIMAL(18,…) where that holds twice the whole digits seen, else (38,…)."""
        if self.scale + self.whole_digits > 38 or self.scale > 18:
            return None
        return f"DECIMAL({18 if self.scale + 2 * self.whole_digits <= 18 else 38},{self.scale})"

    def declared_type(self, *, is_key: bool) -> str:
        """The type to declare. A key's cannot be widened later, so an integer that is one gets 64 bits at least."""
        return "BIGINT" if is_key and self.type_name == "INTEGER" else self.type_name


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _year(text: str, after: int, before: int) -> int | None:
    """The year of a day or time that exists, if it lies between the two."""
    try:
        year = (datetime.fromisoformat(text) if "T" in text else date.fromisoformat(text)).year
    except ValueError:
        return None
    return year if after < year < before else None


@frozen(kw_only=True)
class Sample:
    """Payloads of one table's changes, as parsed JSON objects, and how many entries could not be decoded."""

    stream: str
    table: str
    payloads: Sequence[Mapping[str, Any]]
    rejected: int
    entries: int


def parse_payload(text: str) -> Mapping[str, Any]:
    """A payload with numbers as their texts, so that no digit is lost on the way to the evidence."""
    parsed = json.loads(text, parse_float=_NumberText, parse_int=_NumberText)
    return parsed if isinstance(parsed, dict) else {}


class _NumberText(str):
    """A number as its text."""

    __slots__ = ()


def gather(sample: Sample) -> list[ColumnEvidence]:
    """The evidence for every column, in the order in which the columns were first seen."""
    columns: dict[str, ColumnEvidence] = {}
    for payload in sample.payloads:
        for name, value in payload.items():
            columns.setdefault(name, ColumnEvidence(name=name)).add(value)
    return list(columns.values())


def key_candidates(columns: Sequence[ColumnEvidence], rows: int) -> list[str]:
    """Columns that every change has and that could name a row, the likeliest first."""
    fit = [c for c in columns if c.seen == rows and not c.nulls and c.type_name not in ("JSON", "DOUBLE")]
    refused = _undeclarable([c.name for c in columns])
    whole = [c for c in fit if c.name not in refused]
    return [c.name for c in sorted(whole, key=lambda c: (not _KEY_NAME.search(c.name), -len(c.values)))]


def propose(sample: Sample) -> str:
    """The `[[tables]]` section as TOML, each column with its evidence."""
    columns, rows = gather(sample), len(sample.payloads)
    if not columns:
        raise ValueError(f"stream {sample.stream!r} holds no decodable change to infer from")
    keys = key_candidates(columns, rows)
    refused = f"; {sample.rejected} of {sample.entries} entries could not be decoded" if sample.rejected else ""
    lines = [
        f"# proposed from {rows} changes of stream {_toml_string(sample.stream)}{refused}",
        "[[tables]]",
        _name_line(sample),
        f"stream = {_toml_string(sample.stream)}",
        *_key_lines(columns, keys, rows),
        "[tables.columns]",
    ]
    width = max(len(_toml_key(c.name)) + len(c.type_name) for c in columns) + 20
    refused = _undeclarable([c.name for c in columns])
    for column in columns:
        line = _column_line(column, rows, is_key=bool(keys) and column.name == keys[0], width=width)
        lines.append(f"# {line}; {refused[column.name]}" if column.name in refused else line)
    return "\n".join(lines) + "\n"


def _name_line(sample: Sample) -> str:
    """A name that a table can have. Entries that name another one in their field `table` have to change it there."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", sample.table)[:100]
    name = name if re.match("[A-Za-z]", name) else f"t_{name}"[:100]
    if name == sample.table:
        return f"name = {_toml_string(name)}"
    sent = "" if sample.table == sample.stream else "; entries have to name it like this in their field `table`"
    return f"name = {_toml_string(name)}  # {_toml_string(sample.table)} cannot name a table{sent}"


def _undeclarable(names: Sequence[str]) -> dict[str, str]:
    """Members that cannot be columns, with the reason. They stay in the payload all the same."""
    reasons: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in names:
        if len(name) > 120 or not _COLUMN_NAME.fullmatch(name):
            reasons[name] = "no column can have this name: it stays in the payload"
        elif (other := seen.setdefault(name.lower(), name)) != name:
            reasons[name] = f"differs from {_toml_string(other)} only in case: it stays in the payload"
    return reasons


def _key_lines(columns: Sequence[ColumnEvidence], keys: Sequence[str], rows: int) -> list[str]:
    if not keys:
        return ["key = []  # no column is present and not null in every change: a table needs a key"]
    by_name = {c.name: c for c in columns}
    different = len(by_name[keys[0]].values)
    others = f"; other candidates: {_toml_string(keys[1:4])}" if keys[1:] else ""
    return [f"key = [{_toml_string(keys[0])}]  # {different} different values in {rows} changes{others}"]


def _column_line(column: ColumnEvidence, rows: int, *, is_key: bool, width: int) -> str:
    not_null = "" if is_key or column.nulls or column.seen < rows else " NOT NULL"
    declared = f"{_toml_key(column.name)} = {_toml_string(column.declared_type(is_key=is_key) + not_null)}"
    missing = rows - column.seen
    facts = [f"e.g. {_toml_string(column.example)}", f"{len(column.values)} different"]
    facts += [f"{column.nulls} null"] if column.nulls else []
    facts += [f"{missing} without it"] if missing else []
    facts += ["mixed: " + ", ".join(sorted(column.kinds))] if len(column.kinds) > 1 else []
    return f"{declared:<{width}}# {'; '.join(facts)}"


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml_string(name)


def _toml_string(value: object) -> str:
    """A value as a string, or as JSON, that TOML takes wherever it stands, comments too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

"""Infer: propose `[[tables]]` for what a stream holds, with the evidence as comments. Pure.

Guarantees: every value of the sample fits the type proposed for its column; a key is proposed only from columns that
every change has. A proposal, not a decision: what it cannot know (scale of money still to come) it says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from attrs import define, field, frozen

from replicator.column_types import parse_type

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_INTEGER = re.compile(r"-?(0|[1-9]\d*)")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.(\d{1,9}))?)?(Z|[+-]\d\d:?\d\d)?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
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
    zoned: bool = False
    example: str = ""

    def add(self, value: Any) -> None:
        """Take one value of the column: None, bool, a number as text (`Number`), text, or JSON of something nested."""
        self.seen += 1
        if value is None:
            self.nulls += 1
            return
        self.example = self.example or str(value)[:40]
        self.values.add(str(value))
        kind = self._kind(value)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def _kind(self, value: Any) -> str:
        if isinstance(value, bool):
            return "boolean"
        if isinstance(value, dict | list):
            return "nested"
        text = str(value)
        if _INTEGER.fullmatch(text):
            number = int(text)
            self.low = number if self.low is None else min(self.low, number)
            self.high = number if self.high is None else max(self.high, number)
            self.whole_digits = max(self.whole_digits, len(text.lstrip("-")))
            return "integer"
        if _NUMBER.fullmatch(text):
            return self._decimal(text)
        return self._text_kind(text)

    def _decimal(self, text: str) -> str:
        digits = Decimal(text).as_tuple()
        exponent = int(digits.exponent)
        self.scale = max(self.scale, -exponent)
        self.whole_digits = max(self.whole_digits, len(digits.digits) + exponent)
        return "decimal" if "e" not in text.lower() else "float"

    def _text_kind(self, text: str) -> str:
        if text in ("true", "false"):
            return "boolean"
        if _UUID.fullmatch(text):
            return "uuid"
        if _DATE.fullmatch(text):
            return "date"
        instant = _INSTANT.fullmatch(text)
        if instant is None:
            return "text"
        self.nanoseconds |= len(instant[3] or "") > 6
        self.zoned |= bool(instant[4])
        return "instant"

    @property
    def type_name(self) -> str:
        """The DuckDB type that holds every value seen."""
        kinds = set(self.kinds)
        if len(kinds) == 1:
            return self._single(kinds.pop())
        if kinds <= {"integer", "decimal"} and kinds:
            return self._exact_number()
        if kinds and kinds <= {"integer", "decimal", "float"}:
            return "DOUBLE"
        return "JSON" if "nested" in kinds else "VARCHAR"

    def _single(self, kind: str) -> str:
        if kind == "integer":
            return next((t for t in _INTEGERS if self._fits(t)), "VARCHAR")
        if kind == "decimal":
            return self._exact_number()
        if kind == "instant":
            return "TIMESTAMP_NS" if self.nanoseconds else "TIMESTAMP"
        simple = {"boolean": "BOOLEAN", "uuid": "UUID", "date": "DATE", "nested": "JSON", "float": "DOUBLE"}
        return simple.get(kind, "VARCHAR")

    def _fits(self, type_name: str) -> bool:
        low, high = parse_type(type_name).bounds
        return self.low is not None and self.high is not None and low <= self.low and self.high <= high

    def _exact_number(self) -> str:
        """A decimal with room to grow: DECIMAL(18,…) where that holds twice the whole digits seen, else (38,…)."""
        if self.scale + self.whole_digits > 38 or self.scale > 18:
            return "DOUBLE"
        return f"DECIMAL({18 if self.scale + 2 * self.whole_digits <= 18 else 38},{self.scale})"


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
    whole = [c for c in columns if c.seen == rows and not c.nulls and c.type_name not in ("JSON", "DOUBLE")]
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
        f"name = {_toml_string(sample.table)}",
        f"stream = {_toml_string(sample.stream)}",
        *_key_lines(columns, keys, rows),
        "[tables.columns]",
    ]
    width = max(len(_toml_key(c.name)) + len(c.type_name) for c in columns) + 20
    for column in columns:
        lines.append(_column_line(column, rows, is_key=bool(keys) and column.name == keys[0], width=width))
    return "\n".join(lines) + "\n"


def _key_lines(columns: Sequence[ColumnEvidence], keys: Sequence[str], rows: int) -> list[str]:
    if not keys:
        return ["key = []  # no column is present and not null in every change: a table needs a key"]
    by_name = {c.name: c for c in columns}
    different = len(by_name[keys[0]].values)
    others = f"; other candidates: {_toml_string(keys[1:4])}" if keys[1:] else ""
    return [f"key = [{_toml_string(keys[0])}]  # {different} different values in {rows} changes{others}"]


def _column_line(column: ColumnEvidence, rows: int, *, is_key: bool, width: int) -> str:
    not_null = "" if is_key or column.nulls or column.seen < rows else " NOT NULL"
    declared = f"{_toml_key(column.name)} = {_toml_string(column.type_name + not_null)}"
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

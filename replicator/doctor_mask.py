"""Blots out of a text whatever could be a row's value: only words that are ours, or ordinary to errors, remain.

Guarantees: a word stands in the result only if it stands in this package's own source, among the names of the
configured streams, tables and columns, or in a short list here; numbers stay only where they say a code, a port or a
line. What is unknown is blotted out: it may hide too much, never too little. Pure but for reading our own source once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

BLOT = "…"
ORDINARY = frozenset(
    [
        "access",
        "address",
        "already",
        "argument",
        "bad",
        "broken",
        "cannot",
        "certificate",
        "client",
        "close",
        "closed",
        "column",
        "connect",
        "connection",
        "constraint",
        "convert",
        "could",
        "database",
        "db",
        "denied",
        "directory",
        "disk",
        "error",
        "exception",
        "exceeded",
        "exist",
        "exists",
        "expected",
        "failed",
        "file",
        "full",
        "host",
        "http",
        "in",
        "input",
        "insert",
        "into",
        "invalid",
        "is",
        "lost",
        "memory",
        "missing",
        "name",
        "network",
        "no",
        "not",
        "of",
        "on",
        "or",
        "out",
        "parse",
        "password",
        "peer",
        "permission",
        "pipe",
        "point",
        "port",
        "query",
        "refused",
        "reset",
        "resolve",
        "resource",
        "retries",
        "row",
        "server",
        "size",
        "space",
        "ssl",
        "table",
        "temporarily",
        "timed",
        "timeout",
        "to",
        "too",
        "type",
        "unavailable",
        "unexpected",
        "unknown",
        "unreachable",
        "user",
        "value",
        "violated",
        "with",
        "clickhouse",
        "duckdb",
        "redis",
        "valkey",
        "urllib3",
        "httpconnectionpool",
        "httpsconnectionpool",
        "newconnectionerror",
        "max",
        "exceeded",
        "url",
        "errno",
        "traceback",
        "most",
        "recent",
        "call",
        "last",
        "line",
    ]
)
_WORD = re.compile(r"[^\W\d_][\w]*|\d+(?:\.\d+)?|[^\w\s]|\s+")
_TELLING = re.compile(r"(?i)\b(?:code|errno|port|line|status|version)\b[\s:=\"'\[(]*$")


@cache
def our_words() -> frozenset[str]:
    """Every word of this package's source, in lower case."""
    root = Path(__file__).parent
    texts = [path.read_text() for pattern in ("*.py", "sql/**/*.sql") for path in root.glob(pattern)]
    return frozenset(word.lower() for text in texts for word in re.findall(r"[^\W\d_]\w*", text))


def mask(text: str, names: Iterable[str] = ()) -> str:
    """The text with everything blotted out that is not a known word."""
    known = our_words() | ORDINARY | {name.lower() for name in names}
    kept: list[str] = []
    for piece in _WORD.findall(text):
        first = piece[0]
        safe = not first.isalnum() or (piece.lower() in known if first.isalpha() else _telling("".join(kept[-4:])))
        if safe:
            kept.append(piece if first.isprintable() else " ")
        elif not kept or kept[-1] != BLOT:
            kept.append(BLOT)
    return "".join(kept)


def mask_literals(sql: str, names: Iterable[str] = ()) -> str:
    """A statement whose quoted texts are masked: a constraint or a default may hold a value."""
    return re.sub(r"'[^']*'", lambda found: mask(found[0], names), sql)


def _telling(before: str) -> bool:
    return _TELLING.search(before) is not None


def mask_fields(fields: Mapping[str, Any], names: Iterable[str], safe: Iterable[str] = ()) -> dict[str, Any]:
    """A document with its texts masked, but for those under ``safe`` names; numbers and truths stay."""
    names, safe = tuple(names), frozenset(safe)
    return {key: value if key in safe else _masked(value, names, safe) for key, value in fields.items()}


def _masked(value: Any, names: tuple[str, ...], safe: frozenset[str]) -> Any:
    if isinstance(value, str):
        return mask(value, names)
    if isinstance(value, Mapping):
        return mask_fields(value, names, safe)
    if isinstance(value, list | tuple):
        return [_masked(each, names, safe) for each in value]
    return value

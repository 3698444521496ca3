"""Where an INSERT's own text ends and its data begins, as ClickHouse's parser sees it.

Pure. It reads only as much as it needs of a statement whose tail may be gigabytes of any format, and never interprets
that data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

from attrs import frozen

HEAD_BYTES_MAX = 1 << 20
"""Nobody writes a longer statement in front of its data."""

_TOKEN = re.compile(
    rb"""(?P<blank>\s+|--[^\n]*|\#[ !][^\n]*|/\*.*?(?:\*/|\Z))
       |(?P<quoted>'(?:[^'\\]|\\.|'')*(?:'|\Z)|`(?:[^`\\]|\\.|``)*(?:`|\Z)|"(?:[^"\\]|\\.|"")*(?:"|\Z))
       |(?P<word>[A-Za-z_][A-Za-z0-9_$]*)
       |(?P<other>[0-9][0-9A-Za-z_.]*|.)""",
    re.VERBOSE | re.DOTALL,
)
_TRAILING_FORMAT = re.compile(rb"\bFORMAT\s+(\w+)\s*(?:SETTINGS\b[^()]*)?;?\s*\Z", re.IGNORECASE)
_DATA_GAP = re.compile(rb"[ \t\f]*\r?\n?")


class Head(Enum):
    """What is known of a statement that carries no inline data, or not yet."""

    NEEDS_MORE = "needs more bytes"
    NO_DATA = "carries no inline data"


@frozen(kw_only=True)
class InlineInsert:
    """An INSERT whose data follows: ``target`` … ``settings`` FORMAT ``format_name``, data from byte ``data_at``."""

    target: bytes
    settings: bytes
    format_name: str
    data_at: int

    def from_file(self, path: str) -> bytes:
        """The same INSERT, its data in the file ``path``."""
        quoted = path.replace("\\", "\\\\").replace("'", "\\'").encode("utf-8", "surrogateescape")
        infile = b" FROM INFILE '%b' COMPRESSION 'none' " % quoted
        return b"%b%b%b FORMAT %b" % (self.target, infile, self.settings, self.format_name.encode())


def split_insert(head: bytes, *, complete: bool) -> InlineInsert | Head:
    """Find the data in a statement's first bytes; ``complete`` says that no more will come."""
    undecided = Head.NO_DATA if complete else Head.NEEDS_MORE
    tokens = significant(head)
    first = next(tokens, None)
    if first is None or (first.end() == len(head) and not complete):
        return undecided
    if not is_word(first, b"INSERT"):
        return Head.NO_DATA
    return _find_data(head, tokens, complete=complete) or undecided


def _find_data(head: bytes, tokens: Iterator[re.Match[bytes]], *, complete: bool) -> InlineInsert | Head | None:
    depth = 0
    settings_at: int | None = None
    named = dotted = False  # a table may itself be called "values" or "format"
    for token in tokens:
        if token.end() == len(head) and not complete:
            return None
        text = token.group()
        depth += (text == b"(") - (text == b")")
        part_of_name, dotted = dotted, text == b"."
        if token.lastgroup != "word" or depth or part_of_name:
            named = named or token.lastgroup == "quoted"
            continue
        if not named:
            named = text.upper() not in (b"INTO", b"TABLE", b"FUNCTION")
        elif is_word(token, b"SETTINGS"):
            settings_at = token.start()
        elif text.upper() in (b"SELECT", b"WITH", b"FROM", b"WATCH"):
            return Head.NO_DATA
        elif is_word(token, b"VALUES"):
            return _insert(head, token.start(), settings_at, "Values", token.end())
        elif is_word(token, b"FORMAT"):
            name = next(tokens, None)
            if name is None or name.lastgroup != "word" or (name.end() + 2 > len(head) and not complete):
                return None
            gap = _DATA_GAP.match(head, name.end())
            assert gap is not None
            return _insert(head, token.start(), settings_at, name.group().decode(), gap.end())
    return None


def _insert(head: bytes, end: int, settings_at: int | None, format_name: str, data_at: int) -> InlineInsert:
    cut = end if settings_at is None else settings_at
    return InlineInsert(target=head[:cut], settings=head[cut:end], format_name=format_name, data_at=data_at)


def output_format(statement: bytes) -> str | None:
    """The FORMAT a query names at its end, if it does."""
    match = _TRAILING_FORMAT.search(statement)
    return match.group(1).decode() if match else None


def leading_words(statement: bytes, count: int) -> list[str]:
    """The words a statement begins with, upper case; comments and opening brackets are passed over."""
    words: list[str] = []
    for token in significant(statement):
        if token.lastgroup == "word":
            words.append(token.group().upper().decode())
        elif token.group() != b"(":
            break
        if len(words) == count:
            break
    return words


def significant(head: bytes) -> Iterator[re.Match[bytes]]:
    """The tokens of a statement without blanks and comments."""
    return (token for token in _TOKEN.finditer(head) if token.lastgroup != "blank")


def is_word(token: re.Match[bytes], word: bytes) -> bool:
    """Whether ``token`` is the bare word ``word`` (given in upper case)."""
    return token.lastgroup == "word" and token.group().upper() == word

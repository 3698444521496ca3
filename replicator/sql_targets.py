"""Which tables and views a statement would change, read from its words. Pure.

For an answer that helps, not for safety: what may only read is judged by its parsed tree in `readonly`. Guarantees:
names in strings and comments are not taken for names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""
    (?P<skip>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
  | (?P<text>[eE]?'(?:[^']|'')*(?:'|\Z)|\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|\Z))
  | (?P<name>"(?:[^"]|"")*"|[A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_WRITING = frozenset(("INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE", "CREATE", "DROP", "ALTER", "COPY", "COMMENT"))
_KINDS = frozenset(("TABLE", "VIEW", "INDEX", "SEQUENCE", "MACRO", "FUNCTION", "TRIGGER", "SCHEMA", "TYPE", "COLUMN"))
_FILLERS = _KINDS | frozenset(
    ("OR", "REPLACE", "TEMP", "TEMPORARY", "PERSISTENT", "UNIQUE", "RECURSIVE", "IF", "NOT", "EXISTS", "ONLY")
)
_VERBS = frozenset(("CREATE", "DROP", "ALTER", "TRUNCATE", "UPDATE", "COPY", "ON"))
"""After these a name follows, fillers aside. ON: of an index or a comment."""
_BEFORE_INTO = frozenset(("INSERT", "MERGE", "REPLACE", "IGNORE"))
_NO_NAMES = frozenset(("SET", "CONFLICT"))
Token = tuple[str, bool]
"""A name (in upper case unless it was quoted) or a mark, and whether it was quoted."""


def written_names(sql: str) -> list[str]:
    """The dotted names that the statements insert into, update, delete from, create, alter or drop, in lower case."""
    tokens = list(_tokens(sql))
    if not any(word in _WRITING and not quoted for word, quoted in tokens):
        return []
    found = []
    for place, (word, quoted) in enumerate(tokens):
        before = tokens[place - 1][0] if place else ""
        follows = (
            word in _VERBS or (word == "INTO" and before in _BEFORE_INTO) or (word == "FROM" and before == "DELETE")
        )
        if follows and not quoted:
            found += _name_after(tokens, place + 1)
    return found


def _tokens(sql: str) -> Iterator[Token]:
    for match in _TOKEN.finditer(sql):
        if name := match["name"]:
            quoted = name.startswith('"')
            yield (name[1:-1].replace('""', '"') if quoted else name.upper()), quoted
        elif match["other"] or match["text"]:
            yield match["other"] or "''", False


def _name_after(tokens: list[Token], place: int) -> list[str]:
    while place < len(tokens) and not tokens[place][1] and tokens[place][0] in _FILLERS:
        place += 1
    parts: list[str] = []
    while place < len(tokens) and (tokens[place][1] or re.match(r"[^\W\d]", tokens[place][0])):
        parts.append(tokens[place][0].lower())
        if place + 1 >= len(tokens) or tokens[place + 1][0] != ".":
            break
        place += 2
    return parts if parts and (parts[0].upper() not in _NO_NAMES) else []

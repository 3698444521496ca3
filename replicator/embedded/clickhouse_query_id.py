"""A client's query id, carried through an engine that gives ids of its own.

chDB (26.9) has no way to set a query's id, so it travels as a setting that does nothing without the query cache, and
statements that ask for ``query_id`` in ``system.processes``, ``system.query_log`` or ``KILL QUERY`` are pointed to it.
Pure. It must never touch a string, a comment, or any other statement.
"""

from __future__ import annotations

import re

from replicator.embedded.clickhouse_statement import is_word, leading_words, significant

CARRIER = "query_cache_tag"
_VISIBLE_ID = f"if(Settings['{CARRIER}'] = '', query_id, Settings['{CARRIER}'])".encode()
_TABLES = (b"PROCESSES", b"QUERY_LOG")
_WORTH_READING = re.compile(rb"\b(?:processes|query_log|kill)\b", re.IGNORECASE)


def with_client_ids(statement: bytes) -> bytes:
    """``statement`` with the engine's query ids replaced by the clients' own."""
    if not _WORTH_READING.search(statement):
        return statement
    kill = leading_words(statement, 2) == ["KILL", "QUERY"]
    tokens = list(significant(statement))
    edits = []
    for at, token in enumerate(tokens):
        if kill and is_word(token, b"QUERY_ID"):
            edits.append((token.start(), token.end(), _VISIBLE_ID))
        elif at >= 1 and _names_system_table(tokens[at : at + 3]) and _reads_from(tokens[at - 1]):
            table = statement[token.start() : tokens[at + 2].end()]
            view = b"(SELECT * REPLACE (%b AS query_id) FROM %b)" % (_VISIBLE_ID, table)
            edits.append((token.start(), tokens[at + 2].end(), view))
    for start, end, replacement in reversed(edits):
        statement = statement[:start] + replacement + statement[end:]
    return statement


def _names_system_table(tokens: list[re.Match[bytes]]) -> bool:
    return len(tokens) == 3 and is_word(tokens[0], b"SYSTEM") and tokens[2].group().upper() in _TABLES


def _reads_from(token: re.Match[bytes]) -> bool:
    return is_word(token, b"FROM") or is_word(token, b"JOIN")

"""A file and a copy of it that both went on: noticed before either logs what the other has logged already.

Redis keeps, beside the head, where each later timeline began: how far the log reached that was found to be behind. A
file of an earlier timeline that reaches further, with changes of its own there that were never delivered, went another
way than its copy, which has read the same entries at other offsets. Guarantees: such a file is refused, and its log
stays as it is.
"""

from __future__ import annotations

import re
from typing import Protocol

from replicator.database import Session, statement
from replicator.errors import OwnershipLost, SourceRefused


class Keeper(Protocol):
    """Redis; ``group`` begins the names of this pipeline's keys."""

    @property
    def group(self) -> str: ...
    def kept(self, key: str) -> str: ...
    def swap(self, key: str, expected: bytes | None, new: bytes | None) -> bytes | None: ...


def _key(source: Keeper) -> str:
    return f"{source.group}:returns"


def parse_beginnings(text: str) -> dict[int, int]:
    """``2:100,3:250`` as {timeline: head of the log that was behind}. Raises SourceRefused for anything else."""
    if text and not re.fullmatch(r"\d{1,9}:\d{1,18}(,\d{1,9}:\d{1,18})*", text):
        raise SourceRefused(
            f"the pipeline's key `returns` in Redis holds {text[:80]!r}, which is not ours",
            hint="delete the key; it is written again",
        )
    return {int(timeline): int(head) for timeline, head in (part.split(":") for part in text.split(",") if part)}


def refuse_diverged(session: Session, source: Keeper, *, timeline: int, failed_table: str) -> None:
    """Raises OwnershipLost where a copy of this file went on without changes that stand here."""
    later = {t: head for t, head in parse_beginnings(source.kept(_key(source))).items() if t > timeline}
    if not later:
        return
    began = min(later.values())
    sql = statement("divergence/alone", failed_table)
    count, first = session.rows(sql, {"head": began})[0]
    if count:
        raise OwnershipLost(
            f"a copy of this file went on behind offset {began} (timeline {max(later)}), and {count} changes from offset "
            f"{first} on stand in this one alone",
            hint="run with the file that went on, which has read those entries itself; or move this one away and run "
            "`replicator restore`",
        )


def keep_beginnings(session: Session, source: Keeper) -> None:
    """Let Redis know where this log's timelines began."""
    own = dict(session.rows("select timeline, min(log_head) from log_returns group by timeline"))
    if own:
        text = source.kept(_key(source))
        known = {**parse_beginnings(text), **own}
        wanted = ",".join(f"{timeline}:{head}" for timeline, head in sorted(known.items()))
        if wanted != text:
            source.swap(_key(source), text.encode() or None, wanted.encode())

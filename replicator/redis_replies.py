"""What XINFO answers, as values. Pure: replies of redis-py in RESP2 without decoding, errors among them.

Guarantees: a figure that the server does not give is None, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replicator.model import EntryId
from replicator.witness import StreamDescription


def description(stream: Any, groups: Any, group: str) -> StreamDescription:
    """A stream and our group on it, from the replies to XINFO STREAM and XINFO GROUPS."""
    if isinstance(stream, Exception):
        if "no such key" in str(stream).lower():
            return StreamDescription(exists=False)
        raise stream
    about = _fields(stream)
    ours = _group(groups, group)
    first = about.get(b"first-entry")
    return StreamDescription(
        exists=True,
        length=about[b"length"],
        last_entry_id=_entry_id(about[b"last-generated-id"]),
        first_entry_id=_entry_id(first[0]) if first else None,
        entries_added=about.get(b"entries-added"),
        deleted_entry_id=_entry_id(about[b"max-deleted-entry-id"]) if b"max-deleted-entry-id" in about else None,
        group_entry_id=_entry_id(ours[b"last-delivered-id"]) if ours else None,
        group_entries_read=ours.get(b"entries-read"),
    )


def group_entry_id(groups: Any, group: str) -> EntryId | None:
    """Where our group stands, from the reply to XINFO GROUPS; None when there is no such stream or group."""
    ours = _group(groups, group)
    return _entry_id(ours[b"last-delivered-id"]) if ours else None


def _group(groups: Any, group: str) -> dict[bytes, Any]:
    if isinstance(groups, Exception):
        if "no such key" in str(groups).lower():
            return {}
        raise groups
    found = (_fields(each) for each in groups)
    return next((each for each in found if each[b"name"] == group.encode()), {})


def _fields(reply: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _entry_id(raw: bytes) -> EntryId:
    return EntryId(raw.decode())

"""What XINFO and XREAD answer, as values. Pure: replies of redis-py in RESP2 without decoding, errors among them.

Guarantees: a figure that the server does not give is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from replicator.decode import StreamRead
from replicator.errors import SourceRefused
from replicator.model import EntryId, StreamPosition, entry_order
from replicator.resp import EntryFields, EntryReply
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


def stands_between(published: EntryId, stands: EntryId, target: EntryId) -> bool:
    """Whether a group stands where our own publishing can have left it; a new epoch may publish lower ids."""
    low, at, high = entry_order(published), entry_order(stands), entry_order(target)
    return at >= low and (at <= high or high < low)


def refuse_other_types(streams: Sequence[str], replies: Sequence[Any]) -> None:
    for place, stream in enumerate(streams):
        reply = replies[2 * place]
        if isinstance(reply, Exception) and "WRONGTYPE" in str(reply):
            raise SourceRefused(
                f"the key {stream!r} in Redis is not a stream", hint="rename it, or take it out of [redis] streams"
            )


def entries_passed(position: StreamPosition) -> int:
    """How many entries of the stream's whole life lie before the position; -1 when that is not known."""
    return -1 if position.entries_unread is None else position.entries_unread + position.entries_read


def stream_reads(positions: Mapping[str, StreamPosition], reply: Any) -> list[StreamRead]:
    """What a reply to XREAD holds, stream by stream."""
    if isinstance(reply, EntryReply):
        return [_stream_read(positions, each.stream.decode(), each.ids, each.fields) for each in reply]
    return [stream_read(positions, name.decode(), entries) for name, entries in reply or ()]


def stream_read(positions: Mapping[str, StreamPosition], stream: str, entries: Sequence[Any]) -> StreamRead:
    ids, fields = zip(*entries, strict=True) if entries else ((), ())
    return _stream_read(positions, stream, ids, fields)


def _stream_read(
    positions: Mapping[str, StreamPosition], stream: str, ids: Sequence[bytes], fields: Sequence[Any]
) -> StreamRead:
    position = positions[stream]
    partly = position.last_entry_row is not None and bool(ids) and ids[0].decode() == position.last_entry_id
    return StreamRead(
        stream=stream,
        stream_epoch=position.stream_epoch,
        ids=ids,
        fields=fields,
        skip_through_row=position.last_entry_row if partly else None,
    )


def sampled_bytes(read: StreamRead) -> int:
    """About how many bytes the entries of a read hold, from every 32nd of them."""
    if isinstance(read.fields, EntryFields):
        return read.fields.nbytes
    sample = read.fields[::32]
    return sum(sum(map(len, entry)) for entry in sample if entry) * len(read.fields) // max(1, len(sample))


def without_password(url: str) -> str:
    """The address as it may be shown."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"

"""One step of trimming a stream in Redis: asked and done in one, by a script that runs there.

Guarantees: nothing is removed where our group is missing or stands before the entry given, for then the stream is not
the one that was read; nothing that another group has yet to read or to acknowledge is removed. Redis removes whole
nodes of its tree only, so that a few entries more stay than need be. Never blocks Redis for longer than one step.
"""

from __future__ import annotations

from typing import Any, Protocol

from attrs import define, frozen

from replicator.model import EntryId

STEP = """
local function order(id)
    local ms, seq = string.match(id, '^(%d+)-(%d+)$')
    return string.rep('0', 20 - #ms) .. ms .. string.rep('0', 20 - #seq) .. seq
end
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then return {0, ''} end
local before, holder, ours = ARGV[2], '', false
for _, reply in ipairs(groups) do
    local group = {}
    for place = 1, #reply, 2 do group[reply[place]] = reply[place + 1] end
    local needed = group['last-delivered-id']
    if group.name == ARGV[1] then
        ours = order(needed) >= order(ARGV[2])
    else
        if group.pending > 0 then
            local first = redis.call('XPENDING', KEYS[1], group.name)[2]
            if first and order(first) < order(needed) then needed = first end
        end
        if order(needed) < order(before) then before, holder = needed, group.name end
    end
end
if not ours then return {0, ''} end
return {redis.call('XTRIM', KEYS[1], 'MINID', '~', before, 'LIMIT', ARGV[3]), holder}
"""
"""Source: XTRIM, XINFO GROUPS, XPENDING as documented for Redis 7; ids are compared as texts of one length, since the
numbers of Lua are doubles."""


@frozen(kw_only=True)
class Trimmed:
    """What one step did. ``held_by`` names the group that kept it from going further."""

    entries: int = 0
    held_by: str | None = None


class Scripted(Protocol):
    """Where the script runs."""

    @property
    def group(self) -> str: ...
    def run_script(self, script: str, key: str, *arguments: str | int) -> Any: ...


@define
class StreamTrimming:
    """The streams of one Redis, to be trimmed."""

    source: Scripted

    def trim(self, stream: str, before: EntryId, *, entries_max: int) -> Trimmed:
        """Remove entries older than ``before``, as far as they may go. Raises SourceUnavailable or SourceRefused."""
        entries, holder = self.source.run_script(STEP, stream, self.source.group, before, entries_max)
        return Trimmed(entries=int(entries), held_by=bytes(holder).decode(errors="replace") or None)

"""A reply to XREAD as columns, without a Python object per entry: line ends found by numpy, every length checked. Pure.

Guarantees: what comes out is what hiredis would have made of the same bytes. A reply is taken only if each line ends
where its announced length says and the entries of a stream all have the same fields in the same order; of any other
reply nothing is taken, and its bytes go to hiredis untouched. Never copies more than the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from attrs import define, field, frozen

REPLY_BYTES_MAX = 64 << 20
"""A longer reply is left to hiredis: its values are few and large, or it is not ours."""
KEPT_BYTES_MAX = 16 << 20
ENTRIES_MIN = 128
"""Fewer are cheaper as objects. Source: measured, about 0.1 ms per reply whatever it holds."""
IRREGULAR_BYTES = 64 << 10
"""Only a reply of some size tells that the next ones will be irregular too."""
LINES_OF_HEADER = 4
LENGTH_DIGITS_MAX = 8
STREAMS_MAX = 10_000
FIELDS_MAX = 2_000
SKIPS_MAX = 64
_SLACK = 8
_LF, _CR, _ZERO = 10, 13, 48


class EntryIds(Sequence[bytes]):
    """Entry ids as one Arrow column."""

    def __init__(self, column: pa.BinaryArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            return self.column.take(pa.array(range(*place.indices(len(self))), pa.int64())).to_pylist()
        found: bytes = self.column[place].as_py()
        return found


class EntryFields(Sequence[Sequence[bytes]]):
    """The fields of entries that all have the same names in the same order, one Arrow column per field."""

    def __init__(self, names: tuple[bytes, ...], columns: tuple[pa.BinaryArray, ...]) -> None:
        self.names, self.columns = names, columns

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def nbytes(self) -> int:
        """About how many bytes the values hold."""
        return sum(column.nbytes for column in self.columns)

    @overload
    def __getitem__(self, place: int) -> Sequence[bytes]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Sequence[bytes]]: ...
    def __getitem__(self, place: int | slice) -> Sequence[bytes] | Sequence[Sequence[bytes]]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return [
            part
            for name, column in zip(self.names, self.columns, strict=True)
            for part in (name, column[place].as_py())
        ]


@frozen(kw_only=True)
class StreamEntries:
    """What a reply holds of one stream."""

    stream: bytes
    ids: EntryIds
    fields: EntryFields


class EntryReply(list[StreamEntries]):
    """A whole reply, in the order of its streams."""


@frozen(kw_only=True)
class _Block:
    """Where a stream's entries stand: from ``line`` on, ``entries`` times as many lines as ``parts`` fields make."""

    stream: bytes
    line: int
    entries: int
    parts: int

    @property
    def width(self) -> int:
        return 4 + 2 * self.parts

    @property
    def end(self) -> int:
        return self.line + self.entries * self.width


class IrregularError(Exception):
    """This reply is for hiredis."""


@define
class ReplyBuffer:
    """Bytes of one reply as they come, and how many of its lines are there."""

    size: int = field(default=0, init=False)
    _bytes: np.ndarray = field(factory=lambda: np.empty(1 << 20, np.uint8), init=False)
    _scanned: int = field(default=0, init=False)
    _found: np.ndarray = field(factory=lambda: np.empty(0, np.int64), init=False)
    _lines: int = field(default=0, init=False)
    _needed: int = field(default=1, init=False)
    _blocks: list[_Block] = field(factory=list, init=False)
    _verified: int = field(default=0, init=False)
    """Entries of the last block that are known to be regular."""

    def feed(self, more: bytes | bytearray | memoryview) -> None:
        new = np.frombuffer(more, np.uint8)
        end = self.size + len(new)
        if end + _SLACK > len(self._bytes):
            grown = np.empty(max(2 * len(self._bytes), end + _SLACK), np.uint8)
            grown[: self.size] = self._bytes[: self.size]
            self._bytes = grown
        self._bytes[self.size : end] = new
        self.size = end

    def take(self) -> EntryReply | None:
        """The reply once it is whole, None while it is not. Raises IrregularError where it is for hiredis."""
        if self.size > REPLY_BYTES_MAX or (self.size and self._bytes[0] != ord("*")):
            raise IrregularError
        if self.size < 2 or self._bytes[self.size - 1] != _LF or self._bytes[self.size - 2] != _CR:
            return None
        ends = self._ends()
        while self._lines >= self._needed:
            if not self._plan(ends):
                return self._whole(ends)
        self._refuse_shorter(ends)
        return None

    def _ends(self) -> np.ndarray:
        """Where the lines end, in order: the places of their line feeds."""
        ends = np.flatnonzero(self._bytes[self._scanned : self.size] == _LF) + self._scanned
        bare = self._bytes[ends - 1] != _CR
        if bare.any():
            ends = ends[~bare]
        self._found = ends if not self._lines else np.concatenate([self._found, ends])
        self._lines, self._scanned = len(self._found), self.size
        return self._found

    def _refuse_shorter(self, ends: np.ndarray) -> None:
        """What ends with a line may be whole with fewer lines than foreseen; to wait for the others would be in vain.

        It is not where all entries so far are regular: then the announced ones are still to come.
        """
        block = self._blocks[-1] if self._blocks else None
        if block is None or not block.line < self._lines < block.end:
            raise IrregularError
        complete, rest = divmod(self._lines - block.line, block.width)
        if complete > self._verified:
            self._spans(ends, block, self._verified, complete)
            self._verified = complete
        expected: bytes | None
        for place in range(rest):
            line = self._line(ends, block.line + complete * block.width + place)
            if place in (0, 3):
                fits = line == (b"*%d" % block.parts if place else b"*2")
            elif place == 1 or (place > 3 and place % 2 == 0):
                expected = line
                fits = line[:1] == b"$" and line[1:].isdigit()
            else:
                fits = expected == b"$%d" % len(line)
            if not fits:
                raise IrregularError

    def drain(self) -> bytes:
        """All bytes so far; the buffer is empty afterwards and awaits the next reply."""
        held = self._bytes[: self.size].tobytes()
        self.size, self._scanned, self._lines, self._needed, self._verified = 0, 0, 0, 1, 0
        self._blocks = []
        if len(self._bytes) > KEPT_BYTES_MAX:
            self._bytes = np.empty(1 << 20, np.uint8)
        return held

    def _plan(self, ends: np.ndarray) -> bool:
        """Look at the next header, which is there by now. Whether more lines are needed."""
        streams = self._number(ends, 0, b"*", STREAMS_MAX)
        if self._needed > 1 and len(self._blocks) == streams and self._blocks[-1].end == self._needed:
            return False
        start = self._blocks[-1].end if self._blocks else 1
        if self._needed < start + 2 * LINES_OF_HEADER:
            self._needed = start + 2 * LINES_OF_HEADER
            return True
        name = self._line(ends, start + 2)
        expected = (b"*2", b"$%d" % len(name), b"*2")
        if (self._line(ends, start), self._line(ends, start + 1), self._line(ends, start + 4)) != expected:
            raise IrregularError
        entries = self._number(ends, start + 3, b"*", REPLY_BYTES_MAX)
        parts = self._number(ends, start + 7, b"*", FIELDS_MAX)
        if parts % 2 or (streams == 1 and entries < ENTRIES_MIN):
            raise IrregularError
        block = _Block(stream=name, line=start + LINES_OF_HEADER, entries=entries, parts=parts)
        if self._blocks:
            self._spans(ends, self._blocks[-1], self._verified, self._blocks[-1].entries)
        self._blocks.append(block)
        self._verified = 0
        self._needed = block.end if len(self._blocks) == streams else block.end + 2 * LINES_OF_HEADER
        return True

    def _line(self, ends: np.ndarray, place: int) -> bytes:
        first = int(ends[place - 1]) + 1 if place else 0
        return self._bytes[first : int(ends[place]) - 1].tobytes()

    def _number(self, ends: np.ndarray, place: int, mark: bytes, most: int) -> int:
        """The count in an array's header, at least 1."""
        line = self._line(ends, place)
        digits = line[1:]
        if line[:1] != mark or not digits.isdigit() or len(digits) > LENGTH_DIGITS_MAX or not 0 < int(digits) <= most:
            raise IrregularError
        return int(digits)

    def _whole(self, ends: np.ndarray) -> EntryReply:
        if self._lines != self._needed or int(ends[-1]) + 1 != self.size:
            raise IrregularError
        reply = EntryReply(self._entries(ends, block) for block in self._blocks)
        self.size = 0
        self.drain()
        return reply

    # ── one stream ──

    def _entries(self, ends: np.ndarray, block: _Block) -> StreamEntries:
        places = range(block.line + 5, block.line + block.width, 4)
        names = tuple(self._line(ends, place) for place in places)
        ids, *values = (self._column(first, end) for first, end in self._spans(ends, block, 0, block.entries))
        return StreamEntries(stream=block.stream, ids=EntryIds(ids), fields=EntryFields(names, tuple(values)))

    def _spans(self, ends: np.ndarray, block: _Block, start: int, stop: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Where ids and values of these entries begin and end. Raises IrregularError where an entry is not regular."""
        first = block.line + start * block.width
        lines = ends[first - 1 : block.line + stop * block.width]
        before, after = lines[: -1 : block.width], lines[1:]
        spans = [self._values(before + 1, b"*2\r\n$", after, block, 1)]
        head = b"\r\n*%d\r\n" % block.parts
        for place in range(4, block.width, 4):
            name = self._line(ends, block.line + place + 1)
            head += b"$%d\r\n%b\r\n$" % (len(name), name)
            spans.append(self._values(spans[-1][1], head, after, block, place + 2))
            head = b"\r\n"
        return spans

    def _values(
        self, at: np.ndarray, head: bytes, after: np.ndarray, block: _Block, place: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where each entry's value begins and ends: behind ``head``, its length in digits and a line end.

        ``place`` is the line with the digits; the value is the next line, whose length must be just that.
        """
        header, value = after[place :: block.width], after[place + 1 :: block.width]
        first, end = header + 1, value - 1
        if not self._stands(at, head):
            raise IrregularError
        if not np.array_equal(self._lengths(at + len(head), header - 1), end - first):
            raise IrregularError
        return first, end

    def _stands(self, at: np.ndarray, text: bytes) -> bool:
        """Whether the text stands at each of these places."""
        words = np.ndarray((len(self._bytes) - 7,), np.dtype("<u8"), self._bytes, strides=(1,))
        length = len(text)
        if int(at.max()) + length + _SLACK > len(self._bytes):
            return False
        if length < 8:
            mask = np.uint64((1 << 8 * length) - 1)
            return bool(((words[at] & mask) == np.uint64(int.from_bytes(text, "little"))).all())
        steps = [*range(0, length - 7, 8), length - 8]
        return all(
            (words[at + step] == np.uint64(int.from_bytes(text[step : step + 8], "little"))).all() for step in steps
        )

    def _lengths(self, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The decimal numbers between these places."""
        digits = end - first
        fewest, most = int(digits.min()), int(digits.max())
        if fewest < 1 or most > LENGTH_DIGITS_MAX:
            raise IrregularError
        total = np.zeros(len(first), np.int64)
        for place in range(most):
            digit = self._bytes[end - 1 - place] - np.uint8(_ZERO)
            if place >= fewest:
                digit = np.where(digits > place, digit, np.uint8(0))
            if (digit > 9).any():
                raise IrregularError
            total += digit.astype(np.int64) * 10**place
        return total

    def _column(self, first: np.ndarray, end: np.ndarray) -> pa.BinaryArray:
        """The values as a column of their own: every other piece of a column of values and what lies between."""
        offsets = np.empty(2 * len(first), np.int32)
        offsets[0::2], offsets[1::2] = first, end
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self._bytes)]
        pieces = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)
        return pc.take(pieces, pa.array(np.arange(0, len(offsets) - 1, 2, dtype=np.int32)))


@define
class EntryReader:
    """Stands where redis-py's hiredis reader stands, and takes the replies that are announced by `expect`.

    After a reply that is for hiredis, ever more are left to it before the next is looked at.
    """

    inner: Any
    _buffer: ReplyBuffer = field(factory=ReplyBuffer, init=False)
    _expecting: bool = field(default=False, init=False)
    _skips: int = field(default=0, init=False)
    _skipping: int = field(default=0, init=False)
    _not_enough: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        assert not self.inner.has_data(), "bytes of another reply are waiting"
        self._not_enough = self.inner.gets(False)

    def expect(self) -> None:
        """The next reply is one to XREAD."""
        self._skipping = max(0, self._skipping - 1)
        self._expecting = self._skipping == 0

    def feed(self, buffer: bytes | bytearray | memoryview, offset: int = 0, length: int = -1) -> None:
        part = memoryview(buffer)[offset : offset + length if length >= 0 else None]
        if not self._expecting:
            self.inner.feed(part)
            return
        self._buffer.feed(part)

    def gets(self, *arguments: Any) -> Any:
        if not self._expecting:
            return self.inner.gets(*arguments)
        try:
            reply = self._buffer.take()
        except IrregularError:
            if self._buffer.size > IRREGULAR_BYTES:
                self._skips = min(SKIPS_MAX, 2 * self._skips + 1)
                self._skipping = self._skips
            self._expecting = False
            self.inner.feed(self._buffer.drain())
            return self.inner.gets(*arguments)
        if reply is None:
            return self._not_enough
        self._expecting, self._skips = False, 0
        return reply

    def has_data(self) -> bool:
        return bool(self._buffer.size) or self.inner.has_data()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def expect_entries(connection: Any) -> None:
    """Let a connection of redis-py read its next reply, one to XREAD, as columns; with another parser than hiredis, as ever."""
    parser = getattr(connection, "_parser", None)
    reader = getattr(parser, "_reader", None)
    if parser is not None and type(reader).__module__.partition(".")[0] == "hiredis":
        reader = parser._reader = EntryReader(reader)
    if isinstance(reader, EntryReader):
        reader.expect()

"""Reads cut into transactions: whatever the cuts, every change and rejection once, and a position that is right."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode import arrow, decoded

from replicator.admit import Admitted
from replicator.chunk import Chunk, gather
from replicator.decode import Decoded, decode
from replicator.model import EntryId, StreamPosition

ENTRIES = st.lists(
    st.one_of(
        st.just("good"),
        st.just("bad"),
        st.lists(st.sampled_from(["u", "?"]), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=8,
)


def read_of(kinds: list[object]) -> Decoded:
    """Entries that are one change, none, or a batch of rows of which some are refused."""
    entries = []
    for kind in kinds:
        if kind == "good":
            entries.append({"data": "{}"})
        elif kind == "bad":
            entries.append({"op": "?", "data": "{}"})
        else:
            entries.append({"batch": arrow(pa.table({"_op": kind, "n": list(range(len(kind)))}))})  # type: ignore[arg-type]
    return decoded(*entries)  # type: ignore[arg-type]


def chunk_of(found: Decoded, start: StreamPosition) -> Chunk:
    return Chunk.of(found.read, start, Admitted(changes=found.changes, rejections=found.rejections), more=False)


START = StreamPosition(stream="trades", last_entry_id=EntryId("0-5"), entries_read=41)


def places(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(table["entry_index"].to_pylist(), table["entry_row"].to_pylist(), strict=True))


def pieces_of(chunk: Chunk, sizes: list[int]) -> list[Chunk]:
    """Cut anywhere, also pieces that were cut already."""
    pieces = [chunk]
    for size in sizes:
        place = size % len(pieces)
        if pieces[place].rows > 1:
            pieces[place : place + 1] = pieces[place].cut(1 + size % (pieces[place].rows - 1))
    return pieces


@settings(deadline=None)
@given(ENTRIES, st.lists(st.integers(0, 1000), max_size=8))
def test_any_cuts_keep_every_row_once_and_in_order(kinds: list[object], sizes: list[int]) -> None:
    found = read_of(kinds)
    pieces = pieces_of(chunk_of(found, START), sizes)
    assert [place for piece in pieces for place in places(piece.changes)] == places(found.changes)
    assert [place for piece in pieces for place in places(piece.rejections)] == places(found.rejections)
    assert sum(piece.entries for piece in pieces) == len(kinds)
    assert pieces[-1].end == evolve(START, last_entry_id=EntryId(f"{len(kinds)}-0"), entries_read=41 + len(kinds))
    for before, after in itertools.pairwise(pieces):
        assert after.start == before.end


@settings(deadline=None)
@given(ENTRIES, st.lists(st.integers(0, 1000), max_size=6))
def test_after_any_piece_a_restart_reads_exactly_the_rest(kinds: list[object], sizes: list[int]) -> None:
    """What the position of a piece says is logged is skipped by the next read, neither more nor less."""
    found = read_of(kinds)
    pieces = pieces_of(chunk_of(found, START), sizes)
    for count in range(1, len(pieces) + 1):
        end = pieces[count - 1].end
        logged = int(end.last_entry_id.partition("-")[0])
        first = logged - (0 if end.last_entry_row is None else 1)
        rest = evolve(
            found.read,
            ids=found.read.ids[first:],
            fields=found.read.fields[first:],
            skip_through_row=end.last_entry_row,
        )
        if not rest.ids:
            assert count == len(pieces)
            continue
        again = decode(rest, {})
        for name in ("changes", "rejections"):
            later = [(index - first, row) for piece in pieces[count:] for index, row in places(getattr(piece, name))]
            assert places(getattr(again, name)) == later, (name, count)
        assert end.entries_read == 41 + first


@settings(deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=4), st.integers(0, 40))
def test_gathering_takes_so_many_rows_and_leaves_the_rest(reads: list[list[object]], rows: int) -> None:
    chunks = [chunk_of(read_of(kinds), START) for kinds in reads]
    total = sum(chunk.rows for chunk in chunks)
    rows = min(rows, total)
    taken, rest = gather(chunks, rows)
    assert sum(chunk.rows for chunk in taken) == rows
    assert sum(chunk.rows for chunk in rest) == total - rows
    rejected = sum(chunk.rejections.num_rows for chunk in chunks)
    assert sum(chunk.rejections.num_rows for chunk in [*taken, *rest]) == rejected


def test_a_read_of_rejections_only_moves_the_position() -> None:
    chunk = chunk_of(read_of(["bad", "bad"]), START)
    taken, rest = gather([chunk], 0)
    assert (taken, rest) == ([chunk], [])
    assert chunk.end.entries_read == 43


def test_a_cut_at_either_end_is_our_own_mistake() -> None:
    chunk = chunk_of(read_of(["good", "good"]), START)
    for rows in (0, 2):
        with pytest.raises(AssertionError):
            chunk.cut(rows)


def test_a_spent_chunk_keeps_what_is_counted_of_it_and_no_rows() -> None:
    chunk = evolve(chunk_of(read_of(["good", "bad", ["u", "?"]]), START), repeated=2, conflicts=1)
    spent = chunk.spent()
    assert (spent.rows, spent.rejections.num_rows, len(spent.ids)) == (0, 0, 0)
    assert chunk.rows == 2
    kept = ("start", "end", "more", "entries", "repeated", "conflicts", "gaps")
    assert [getattr(spent, name) for name in kept] == [getattr(chunk, name) for name in kept]

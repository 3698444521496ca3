"""What a pipeline at rest is found to hold: Redis, the log and the sink compared entry by entry, by an own fold.

Nothing here asks the service or uses its SQL: what is promised is computed again from what the engines hold.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import md5

from attrs import define, field
from pipeline_room import PipelineRoom

from replicator.database import Session

Row = tuple[int, int, str, str]
"""Offset, version, entry id, payload."""


@define(kw_only=True)
class Findings:
    """``lost`` and ``doubled`` name entries and offsets; both must stay empty. Physical duplicates are only counted."""

    entries: int = 0
    parked: int = 0
    lost: list[str] = field(factory=list)
    doubled: list[str] = field(factory=list)
    wrong: list[str] = field(factory=list)
    """What is there and is not as it should be: order, content, current rows, ledger, promise 3."""
    physical_duplicates: int = 0
    sent_twice: list[str] = field(factory=list)
    """Which rows those are, and that ClickHouse has them under sends of their own; under one send they are doubled."""
    checksums: dict[str, str] = field(factory=dict)
    """Of each stream's rows in the log; those of the sink are equal where nothing is lost, doubled or wrong."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)


def compare(room: PipelineRoom, acknowledged: Iterable[str] = ()) -> Findings:
    """Producer, log and sink of a room where nothing runs: count, distinct, order, content, ``orders`` by an own fold."""
    found = Findings()
    with room.file() as session:
        _promises(room, session, found)
        parked = {o for (o,) in session.rows("select log_offset from parked_changes")}
        found.parked = len(parked)
        for stream in room.streams:
            entries = [(id_.decode(), fields) for id_, fields in room.source.xrange(stream)]
            found.entries += len(entries)
            rows = session.rows(
                "select log_offset, version, entry_id, payload from change_log where stream = ? order by 1", [stream]
            )
            _log(stream, [entry_id for entry_id, _ in entries], rows, found)
            _sink(room, stream, rows, parked, found)
            acknowledged = set(acknowledged) - {entry_id for entry_id, _ in entries}
    found.lost += [f"{entry_id} was acknowledged and is not in Redis" for entry_id in acknowledged]
    if "orders" in room.streams:
        _current_rows(room, found)
    return found


def _promises(room: PipelineRoom, session: Session, found: Findings) -> None:
    try:
        room.check_promise_three(session)
    except AssertionError as error:
        found.wrong.append(f"promise 3: {error}")
    offsets = [offset for (offset,) in session.rows("select log_offset from change_log order by 1")]
    if offsets != list(range(1, len(offsets) + 1)):
        found.wrong.append("the log's offsets have holes")
    if session.rows("select count(*) from failed_syncs where status = 'open' and reason <> 'rejected'") != [(0,)]:
        found.wrong.append("ranges are still parked after an outage")
    end: dict[str, int] = {}
    ranges = "select distinct table_name, first_offset, last_offset from {db}.replicator_batches final order by 1, 2"
    for lane, first, last in room.sink_rows(ranges):
        if int(first) != end.get(lane, 0) + 1:
            found.wrong.append(f"the ledger of {lane} has {first}-{last} behind {end.get(lane, 0)}")
        end[lane] = int(last)


def _log(stream: str, entries: Sequence[str], rows: Sequence[Row], found: Findings) -> None:
    logged = [entry_id for _, _, entry_id, _ in rows]
    found.lost += [f"{stream} {entry_id} is not in the log" for entry_id in set(entries) - set(logged)]
    found.doubled += [f"{stream} {e} is in the log {n} times" for e, n in Counter(logged).items() if n > 1]
    found.wrong += [f"{stream} {e} is in the log and not in Redis" for e in set(logged) - set(entries)]
    if len(logged) == len(entries) and logged != entries:
        found.wrong.append(f"{stream} is logged in another order")
    found.checksums[stream] = _checksum(rows)


def _sink(room: PipelineRoom, stream: str, rows: Sequence[Row], parked: set[int], found: Findings) -> None:
    typed = stream == "orders"
    table = f"{stream}_log" if typed else "change_log"
    columns = "_offset, _version, _entry_id, _payload" if typed else "log_offset, version, entry_id, payload"
    where = "" if typed else f"where stream = '{stream}'"
    held = [(int(o), int(v), e, p) for o, v, e, p in room.sink_rows(f"select {columns} from {{db}}.{table} {where}")]
    ((final,),) = room.sink_rows(f"select count() from {{db}}.{table} final {where}")
    offsets = {row[0] for row in held}
    due = [row for row in rows if row[0] not in parked]
    found.physical_duplicates += len(held) - len(offsets)
    _sends(room, table, columns.partition(",")[0], where, found)
    found.lost += [f"{table}: offset {row[0]} is not in ClickHouse" for row in due if row[0] not in offsets]
    if int(final) != len(offsets):
        found.doubled.append(f"{table}: {final} rows under FINAL, {len(offsets)} offsets")
    found.wrong += [f"{table}: {row[0]} differs from the log" for row in set(held) - set(due)]


def _sends(room: PipelineRoom, table: str, offset: str, where: str, found: Findings) -> None:
    sql = (
        f"select sends, min(offset), max(offset), count(), length(arrayDistinct(sends)) from (select {offset} as offset, "
        f"groupArray(_send) as sends from {{db}}.{table} {where} group by offset having count() > 1) group by sends"
    )
    for sends, first, last, rows, distinct in room.sink_rows(sql):
        text = f"{table}: {rows} rows of {first}..{last} under sends {sends}"
        (found.sent_twice if int(distinct) == len(sends) else found.doubled).append(text)


def _checksum(rows: Iterable[Row]) -> str:
    return md5(b"\n".join(repr(row).encode() for row in rows), usedforsecurity=False).hexdigest()[:16]


def _current_rows(room: PipelineRoom, found: Findings) -> None:
    """``orders`` on both sides against the entries in Redis, folded here."""
    expected: dict[str, tuple[int, str]] = {}
    for _, fields in room.source.xrange("orders"):
        row = json.loads(fields[b"data"])
        if fields.get(b"op") == b"d":
            expected.pop(row["order_id"], None)
        else:
            expected[row["order_id"]] = (row["quantity"], row["price"])
    sink = room.sink_rows("select order_id, quantity, toString(price) from {db}.orders")
    with room.file() as session:
        log = session.rows("select order_id, quantity, price::varchar from orders")
    for where, rows in (("ClickHouse", sink), ("DuckDB", log)):
        held = {key: (int(quantity), price) for key, quantity, price in rows}
        if held != expected or len(rows) != len(expected):
            off = sorted(k for k in held.keys() | expected.keys() if held.get(k) != expected.get(k))
            found.wrong.append(f"orders in {where} is not what the entries fold to: {off[:5]}")

"""What the sink does not have yet, by stream: the same whether one looks at all of the log or at what can have changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pyarrow as pa
import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.changelog import Append, ChangeLog
from replicator.config import migrations_dir
from replicator.database import Database, DatabaseOptions, Session
from replicator.model import CHANGE_SCHEMA, REJECTION_SCHEMA
from replicator.trim import Trim, Trimmer

LANES, STREAMS = ("change_log", "a", "b"), ("s", "t")
Row = tuple[str, str]


@define
class Room:
    """A log whose lanes and parked ranges are set by hand, and what that means, found by looking at every row."""

    database: Database
    session: Session
    log: ChangeLog
    rows: list[Row] = field(factory=list)
    stands: dict[str, int] = field(factory=dict)
    parked: list[tuple[str, int, int]] = field(factory=list)

    def append(self, rows: list[Row]) -> None:
        tables = ["x" if lane == "change_log" else lane for lane, _ in rows]
        count, first = len(rows), len(self.rows) + 1
        columns = {
            "table_name": tables, "schema_version": [0 if lane == "change_log" else 1 for lane, _ in rows],
            "op": ["u"] * count, "key": ["k"] * count, "payload": ["{}"] * count, "stream": [s for _, s in rows],
            "stream_epoch": [1] * count, "entry_id": [f"{first + n}-0" for n in range(count)], "entry_row": [0] * count,
        }  # fmt: skip
        arrays = [pa.array(columns.get(f.name, [None] * count), f.type) for f in CHANGE_SCHEMA]
        table = pa.Table.from_arrays(arrays, schema=CHANGE_SCHEMA)
        self.log.append(self.session, Append(changes=table, rejections=REJECTION_SCHEMA.empty_table(), positions=()))
        self.rows += rows

    def stand(self, lane: str, offset: int) -> None:
        self.stands[lane] = offset
        self.session.execute("delete from checkpoints where table_name = ?", [lane])
        self.session.execute("insert into checkpoints values (?, ?, now()::timestamp)", [lane, offset])

    def park(self, lane: str, first: int, last: int) -> None:
        self.parked.append((lane, first, last))
        self.session.execute(
            "insert into failed_syncs (id, table_name, first_offset, last_offset, row_count, reason, attempts, "
            "first_failed_at, last_failed_at, status) values (nextval('failed_syncs_id'), ?, ?, ?, 1, 'outage', 1, "
            "now()::timestamp, now()::timestamp, 'open')",
            [lane, first, last],
        )

    def resolve(self) -> None:
        self.parked = []
        self.session.execute("update failed_syncs set status = 'resolved'")

    def expected(self) -> dict[str, tuple[int, str]]:
        found: dict[str, tuple[int, str]] = {}
        for offset, (lane, stream) in enumerate(self.rows, start=1):
            waits = offset > self.stands.get(lane, 0)
            waits = waits or any(lane == other and first <= offset <= last for other, first, last in self.parked)
            if waits and stream not in found:
                found[stream] = (1, f"{offset}-0")
        return found


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    path = tmp_path_factory.mktemp("trim") / "log.duckdb"
    database = Database.open(DatabaseOptions(path=path, threads=1, memory_mb=128))
    database.migrate(migrations_dir() / "duckdb")
    yield database
    database.close()


def room_of(database: Database) -> Room:
    session = database.session()
    for table in ("change_log", "checkpoints", "failed_syncs", "sync_batches"):
        session.execute(f"delete from {table}")
    return Room(database, session, ChangeLog.open(database))


def trimmer_of(room: Room) -> Trimmer:
    source = SimpleNamespace()
    return Trimmer(Trim.CONFIRMED, source, room.log, lambda: STREAMS, threading.Event())  # type: ignore[arg-type]


lanes, places = st.sampled_from(LANES), st.integers(0, 30)
steps = st.one_of(
    st.tuples(st.just("append"), st.lists(st.tuples(lanes, st.sampled_from(STREAMS)), min_size=1, max_size=8)),
    st.tuples(st.just("stand"), lanes, places),
    st.tuples(st.just("park"), lanes, places, st.integers(0, 5)),
    st.just(("resolve",)),
)


@settings(max_examples=40)
@given(st.lists(steps, max_size=12))
def test_a_look_at_what_can_have_changed_finds_what_a_look_at_everything_does(database: Database, taken: list) -> None:
    room = room_of(database)
    trimmer = trimmer_of(room)
    for step in taken:
        if step[0] == "park":
            room.park(step[1], step[2], step[2] + step[3])
        elif step[0] == "stand":  # up, and down as after a sink that came back older; never beyond the head
            room.stand(step[1], min(step[2], len(room.rows)))
        else:
            getattr(room, step[0])(*step[1:])
        assert trimmer._unconfirmed(room.session) == room.expected()
    room.session.close()


def test_a_lane_that_rests_far_behind_is_not_looked_at_again(database: Database) -> None:
    room = room_of(database)
    trimmer = trimmer_of(room)
    room.append([("a", "s")] + [("change_log", "t")] * 20)
    room.stand("a", 1)
    room.stand("change_log", 15)
    assert trimmer._unconfirmed(room.session) == room.expected() == {"t": (1, "16-0")}
    assert (trimmer._start("a", 1), trimmer._start("change_log", 15)) == (21, 15)
    assert trimmer._start("a", 0) == 0, "who came back from further behind is looked at from there"
    room.session.close()


def test_a_log_that_went_back_is_looked_at_anew(database: Database) -> None:
    room = room_of(database)
    trimmer = trimmer_of(room)
    room.append([("a", "s")] * 9)
    room.stand("a", 9)
    assert trimmer._unconfirmed(room.session) == {}
    room.session.execute("delete from change_log where log_offset > 4")
    room.log.reread(room.session)
    room.stand("a", 2)
    assert trimmer._unconfirmed(room.session) == {"s": (1, "3-0")}
    room.session.close()

"""The delivery records: each step is one transaction, and a checkpoint only ever goes forward."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve
from log_room import MIGRATIONS

from replicator.database import Database, DatabaseOptions, Session, quote
from replicator.ledger import Ledger, NewBatch
from replicator.model import Batch, Checksum, Failure, OffsetRange, ParkReason

FAILURE = Failure(reason=ParkReason.OUTAGE, code="202", message="busy", attempts=3)
POISON = Failure(reason=ParkReason.REJECTED, code="53", column="price", message="bad", attempts=1)


@pytest.fixture(params=["failed_syncs", 'parked "here"'])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=1))
    database.migrate(MIGRATIONS / "duckdb")
    yield Ledger.open(database, request.param)
    database.close()


@pytest.fixture
def session(ledger: Ledger) -> Session:
    return ledger.database.session()


def new(first: int, last: int, lane: str = "change_log") -> NewBatch:
    return NewBatch(
        lane=lane,
        offsets=OffsetRange(first=first, last=last),
        row_count=last - first + 1,
        checksum=Checksum(rows=last - first + 1, sum=1, xor=2),
        schema_version=0,
    )


def freeze(ledger: Ledger, session: Session, *batches: NewBatch) -> list[Batch]:
    return ledger.advance(session, delivered=[], idle={}, frozen=batches)


def checkpoints(session: Session) -> dict[str, int]:
    return dict(session.rows("select table_name, log_offset from checkpoints"))


def everything(ledger: Ledger, session: Session) -> list[object]:
    tables = ["checkpoints", "sync_batches", ledger.failed_table, "parked_changes", "meta"]
    return [sorted(map(repr, session.rows(f"from {table}"))) for table in tables]


def log_some(session: Session, rows: int) -> None:
    session.execute(
        "insert into change_log by name select i as log_offset, i::ubigint as version, 't' as table_name, 'u' as op, "
        "'k' as key, '{}' as payload, 0 as schema_version, now()::timestamp as logged_at, 's' as stream, "
        "1 as stream_epoch, '1-0' as entry_id, 0 as entry_row from range(1, ? + 1) r(i)",
        [rows],
    )


def test_a_batch_is_frozen_delivered_and_passed(ledger: Ledger, session: Session) -> None:
    batch = freeze(ledger, session, new(1, 10))[0]
    assert ledger.undelivered(session) == [batch]
    assert ledger.positions(session)["change_log"].batched == 10
    ledger.advance(session, delivered=[batch], idle={"orders": 7}, frozen=[])
    assert ledger.undelivered(session) == []
    assert checkpoints(session) == {"change_log": 10, "orders": 7}


def test_a_checkpoint_never_goes_back(ledger: Ledger, session: Session) -> None:
    ledger.advance(session, delivered=[], idle={"orders": 50}, frozen=[])
    ledger.advance(session, delivered=[], idle={"orders": 20}, frozen=[])
    batch = freeze(ledger, session, new(1, 10, "orders"))[0]
    ledger.advance(session, delivered=[batch], idle={}, frozen=[])
    assert checkpoints(session) == {"orders": 50}


def test_send_numbers_never_come_twice_not_even_after_a_restart(ledger: Ledger, session: Session) -> None:
    numbers = [batch.send_seq for batch in freeze(ledger, session, new(1, 1), new(2, 2))]
    numbers.append(ledger.next_send(session))
    batch = freeze(ledger, session, new(3, 3))[0]
    numbers += [batch.send_seq, ledger.renew(session, batch).send_seq]
    numbers += [child.send_seq for child in ledger.split(session, batch, [new(3, 3)])]
    again = Ledger.open(ledger.database, ledger.failed_table.strip('"').replace('""', '"'))
    numbers.append(again.next_send(session))
    assert numbers == sorted(set(numbers))
    assert again.undelivered(session)[-1].send_seq == numbers[-2]


def test_a_commit_that_was_reported_lost_and_is_not_gives_no_number_away_twice(
    ledger: Ledger, session: Session
) -> None:
    other = Ledger.open(ledger.database)
    other.next_send(session)  # what the first one does not know of
    ledger.refresh(session)
    assert ledger.next_send(session) == 2


def test_a_parked_batch_lets_the_checkpoint_pass_in_the_same_step(ledger: Ledger, session: Session) -> None:
    batch = freeze(ledger, session, new(1, 10))[0]
    ledger.park(session, batch, FAILURE)
    assert checkpoints(session) == {"change_log": 10}
    failed = ledger.open_failures(session)
    assert [(f.offsets, f.reason, f.attempts) for f in failed] == [(batch.offsets, "outage", 3)]
    assert ledger.undelivered(session) == []
    assert ledger.open_failures(session, "orders") == []


def test_rejected_rows_are_copied_and_given_back_when_resolved(ledger: Ledger, session: Session) -> None:
    log_some(session, 20)
    batch = freeze(ledger, session, new(5, 6))[0]
    ledger.park(session, batch, POISON)
    assert session.rows("select log_offset from parked_changes order by 1") == [(5,), (6,)]
    failed = ledger.open_failures(session)[0]
    ledger.failed_again(session, failed, FAILURE)
    assert ledger.open_failures(session)[0].attempts == 2
    ledger.resolve(session, failed)
    assert ledger.open_failures(session) == []
    assert session.rows("from parked_changes") == []
    assert checkpoints(session) == {"change_log": 6}


def test_the_column_at_fault_is_kept_through_parking_splitting_and_retrying(ledger: Ledger, session: Session) -> None:
    def columns() -> list[object]:
        rows = session.rows(f"select error_column from {ledger.failed_table} order by first_offset, id")
        return [column for (column,) in rows]

    log_some(session, 4)
    ledger.park(session, freeze(ledger, session, new(1, 4))[0], POISON)
    assert columns() == ["price"]
    parts = ledger.split_failed(session, ledger.open_failures(session)[0], [new(1, 2), new(3, 4)])
    assert columns() == ["price", "price"]
    ledger.failed_again(session, parts[0], FAILURE)
    ledger.reject_failed(session, parts[1], evolve(POISON, column="quantity"))
    assert columns() == [None, "quantity"]


@pytest.mark.parametrize("name", ["failed_syncs", 'parked "here"'])
def test_a_file_of_a_release_without_the_column_has_it_and_its_rows_after_opening(tmp_path: Path, name: str) -> None:
    older = tmp_path / "older"
    older.mkdir()
    for script in sorted((MIGRATIONS / "duckdb").glob("*.sql"))[:8]:
        shutil.copy(script, older)
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=1))
    database.migrate(older)
    session = database.session()
    session.execute(f"create table if not exists {quote(name)} as from failed_syncs limit 0")
    session.execute(
        f"insert into {quote(name)} by name select 7 as id, 't' as table_name, 1 as first_offset, 2 as last_offset, "
        "2 as row_count, 'outage' as reason, 3 as attempts, timestamp '2026-01-01' as first_failed_at, "
        "timestamp '2026-01-01' as last_failed_at, 'open' as status"
    )
    session.close()
    database.close()
    database = Database.open(DatabaseOptions(path=tmp_path / "log.duckdb", threads=1))
    database.migrate(MIGRATIONS / "duckdb")
    for _ in range(2):
        ledger = Ledger.open(database, name)
    session = database.session()
    assert session.rows(f"select id, status, error_column from {ledger.failed_table}") == [(7, "open", None)]
    ledger.park(session, freeze(ledger, session, new(5, 6))[0], POISON)
    assert [failed.id for failed in ledger.open_failures(session)] == [7, 1]
    database.close()


def test_a_parked_range_refused_at_its_redrive_is_split_and_its_row_kept(ledger: Ledger, session: Session) -> None:
    log_some(session, 4)
    ledger.park(session, freeze(ledger, session, new(1, 4))[0], FAILURE)
    parts = ledger.split_failed(session, ledger.open_failures(session)[0], [new(1, 2), new(3, 4)])
    assert [(part.offsets.first, part.offsets.last, part.row_count) for part in parts] == [(1, 2, 2), (3, 4, 2)]
    assert ledger.open_failures(session) == parts
    ledger.reject_failed(session, parts[0], POISON)
    assert ledger.open_failures(session)[0].reason == "rejected"
    assert session.rows("select log_offset from parked_changes order by 1") == [(1,), (2,)]


STEPS: list[Callable[[Ledger, Session, Batch], object]] = [
    lambda ledger, s, b: ledger.advance(
        s, delivered=[b], idle={"orders": 3}, frozen=[new(11, 12), new(1, 3, "orders")]
    ),
    lambda ledger, s, b: ledger.renew(s, b),
    lambda ledger, s, b: ledger.split(s, b, [new(1, 5), new(6, 10)]),
    lambda ledger, s, b: ledger.park(s, b, POISON),
    lambda ledger, s, b: ledger.next_send(s),
    lambda ledger, s, b: ledger.resolve(s, ledger.open_failures(s)[0]),
    lambda ledger, s, b: ledger.split_failed(s, ledger.open_failures(s)[0], [new(20, 21), new(22, 23)]),
    lambda ledger, s, b: ledger.reject_failed(s, ledger.open_failures(s)[0], POISON),
]


@pytest.mark.parametrize("step", STEPS)
def test_each_step_is_stored_whole_or_not_at_all(
    ledger: Ledger, session: Session, step: Callable[[Ledger, Session, Batch], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after each of its statements in turn, it leaves what was there before."""
    log_some(session, 30)
    parked, batch = freeze(ledger, session, new(20, 23, "quotes"), new(1, 10))
    ledger.park(session, parked, FAILURE)
    before, seq = everything(ledger, session), ledger.send_seq
    execute, count = Session.execute, [0]
    for allowed in range(40):
        count[0] = 0

        def cut_off(self: Session, *arguments: object, allowed: int = allowed) -> None:
            count[0] += 1
            if count[0] > allowed:
                raise RuntimeError("cut off")
            execute(self, *arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(Session, "execute", cut_off)
            try:
                step(ledger, session, batch)
                break
            except RuntimeError:
                pass
        assert everything(ledger, session) == before, allowed
        assert ledger.send_seq == seq
    assert everything(ledger, session) != before

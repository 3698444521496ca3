"""A manager's question put to a DuckDB file that this process has open, answered as Arrow.

Guarantees: judged by the same rules as over HTTP, exact, of one moment, within its time and rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from replicator import database_errors
from replicator.database import Database, Session
from replicator.errors import ReplicatorError
from replicator.query import QueryFailed, require_captured
from replicator.query_formats import exact, with_kinds
from replicator.query_question import Question, plain_values
from replicator.readonly import check_query

BATCH_ROWS = 61_440
WRITES = frozenset(("INSERT", "UPDATE", "DELETE", "MERGE_INTO", "CREATE", "DROP", "ALTER"))
"""The statements that the owner of a file may put to its own tables."""


def read(database: Database, question: Question) -> pa.Table:
    """The answer to one SELECT. Raises QueryFailed and QueryRefused."""
    with _session(database) as session:
        check_query(session, question.sql)
        with _as_failure():
            require_captured(session, question)
        cursor = session.cursor()
        with _within(question.seconds, cursor), _as_failure(), _at_one_moment(session):
            parameters = plain_values(question.parameters)
            relation, kinds = exact(cursor.sql(question.sql, params=parameters or None))
            with relation.to_arrow_reader(BATCH_ROWS) as reader:
                batches = list(_at_most(reader, question.rows_max))
                return pa.Table.from_batches(batches, reader.schema).cast(with_kinds(reader.schema, kinds))


def _at_most(reader: pa.RecordBatchReader, rows_max: int) -> Iterator[pa.RecordBatch]:
    rows = 0
    for batch in reader:
        rows += batch.num_rows
        if rows > rows_max:
            raise QueryFailed(f"the query gives more than {rows_max:,} rows", code="rows")
        yield batch


def only_writes(database: Database, sql: str) -> bool:
    """Whether all its statements are of a kind that may change the owner's own tables. What is no SQL is left to `read`."""
    with _session(database) as session:
        try:
            with _as_failure():
                kinds = [found.type.name for found in session.cursor().extract_statements(sql)]
        except QueryFailed:
            return False
    return bool(kinds) and WRITES.issuperset(kinds)


def write(database: Database, question: Question) -> pa.Table:
    """Run the statements as one transaction; what the last one gives. The caller has looked at what they change."""
    with _session(database) as session:
        cursor = session.cursor()
        with _within(question.seconds, cursor), _as_failure(), session.transaction():
            relation = cursor.sql(question.sql, params=question.parameters or None)
            kinds = [str(kind) for kind in relation.types]
            found = relation.to_arrow_table()
            return found.cast(with_kinds(found.schema, kinds))


@contextmanager
def _session(database: Database) -> Iterator[Session]:
    session = database.session()
    try:
        yield session
    finally:
        session.close()


@contextmanager
def _at_one_moment(session: Session) -> Iterator[None]:
    session.execute("begin transaction read only")
    try:
        yield
    finally:
        with suppress(ReplicatorError):  # a fatal error has ended it already
            session.execute("rollback")


@contextmanager
def _within(seconds: float, cursor: Any) -> Iterator[None]:
    late = threading.Event()

    def stop() -> None:
        late.set()
        cursor.interrupt()

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except ReplicatorError as error:
        if late.is_set():
            raise QueryFailed(f"the query took longer than {seconds:g} s", code="time") from error
        raise
    finally:
        timer.cancel()


@contextmanager
def _as_failure() -> Iterator[None]:
    """DuckDB's errors, and what Arrow makes of them, as ours."""
    try:
        yield
    except ReplicatorError:
        raise
    except Exception as error:
        code = "memory" if database_errors.NO_MEMORY.search(str(error)) else "query"
        raise QueryFailed(f"the query failed: {database_errors.first_line(error)}", code=code) from error

"""Readers' queries: judged and fed by the service, computed in a process of their own, within limits.

Guarantees: a query sees one moment of the database; the service itself runs nothing for it but plain selections of
columns and rows, so that whatever a query does to memory, time or DuckDB ends that query alone; one that meets a limit
fails, and no answer is cut short in silence. Must never hold up an append.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import structlog
from attrs import define, field, frozen

from replicator import database_errors
from replicator.capture import CaptureProgress
from replicator.database import Database, Session, quote, statement
from replicator.errors import DatabaseUnavailable, ReplicatorError, UsageError
from replicator.model import entry_order
from replicator.query_pace import Pace
from replicator.query_plan import Feed, plan
from replicator.query_process import QueryProcess, QueryProcesses
from replicator.query_question import ROWS_MAX, SECONDS_DEFAULT, SECONDS_MAX, EntryNotCaptured, Format, Question
from replicator.readonly import check_query

FEED_ROWS = 61_440
OPEN_MAX = 32
RUNNING_MAX = 4
"""So many queries have a process at a time; the others wait for one within their time."""
FEED_OPERATOR_MB = 32
"""What the service's own views may keep while they are read, before it goes to disk."""
FEED_END_SECONDS = 0.2
"""So long after its answer a query's feed may take to end, for its process to be used again."""
STOP_SECONDS = 5.0
TURN_SECONDS = 0.05
HINTS = {
    "rows": "ask for fewer with a condition or LIMIT, or raise max_rows",
    "time": "ask for less, or raise timeout_seconds",
    "memory": "let it keep less at once: fewer columns, groups or rows",
}

log = structlog.get_logger(__name__)


class QueryFailed(UsageError):
    """The query is at fault, or met a limit: ``code`` is ``query``, ``time``, ``rows``, ``memory``, ``left`` or ``stop``."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message, hint=HINTS.get(code, ""), code=code)


class QueriesBusy(DatabaseUnavailable):
    """Too many queries are open already."""


@frozen(kw_only=True)
class Ask:
    """One query."""

    sql: str
    parameters: Sequence[Any] | Mapping[str, Any] | None = field(default=None, repr=False)
    form: Format = Format.ARROW
    seconds: float = SECONDS_DEFAULT
    rows_max: int = ROWS_MAX


@define(eq=False)
class RunningQuery:
    """A query from its opening to its close. One thread at a time uses it; any may cancel it."""

    queries: Queries
    ask: Ask
    session: Session
    head_offset: int
    """At least up to here the log is in what the query sees."""
    rows: int | None = None
    """How many rows it gave, once it has ended."""
    cancelled: QueryFailed | None = None
    _cursor: Any = field(init=False)
    _process: QueryProcess | None = None
    _timer: threading.Timer = field(init=False)
    _feeder: threading.Thread | None = None
    _feed_error: Exception | None = None
    _first: tuple[bytes, bytes] = (b"", b"")
    _has_turn: bool = False
    _closed: bool = False
    _lock: threading.Lock = field(factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._cursor = self.session.cursor()
        late = QueryFailed(f"the query took longer than {self.ask.seconds:g} s", code="time")
        self._timer = threading.Timer(self.ask.seconds, self.cancel, [late])
        self._timer.daemon = True
        self._timer.start()

    def start(self) -> RunningQuery:
        """Judge it, have it computed, and wait for the first piece. Raises QueryFailed and QueryRefused."""
        try:
            with self.queries.pace.work(self._unless_cancelled):
                tree = check_query(self.session, self.ask.sql)
                relations = self.queries.relations(self.session)
                feeds = plan(tree, relations | self.queries.macros(self.session, self.ask.sql), self.ask.parameters)
            self._wait_for_a_turn()
            process = self.queries.processes.take()
            with self._lock:
                self._process = process
            self._unless_cancelled()
            process.request(_request(self.ask, feeds, relations))
            self._feeder = threading.Thread(target=self._feed, args=[process, feeds], name="query-feed", daemon=True)
            self._feeder.start()
            self._first = self._received(process)
        except BaseException as error:
            self.close()
            raise self._meaning(error) from error
        return self

    def _wait_for_a_turn(self) -> None:
        while not self._has_turn:
            self._unless_cancelled()
            self._has_turn = self.queries.turns.acquire(timeout=TURN_SECONDS)

    def pieces(self) -> Iterator[bytes]:
        """The answer in its format, piece by piece; closes the query at the end. Raises QueryFailed."""
        assert self._process is not None, "the query has started"
        try:
            kind, content = self._first
            while kind == b"D":
                yield content
                kind, content = self._received(self._process)
            self.rows = json.loads(content)["rows"]
        except Exception as error:
            raise self._meaning(error) from error
        finally:
            self.close()

    def _received(self, process: QueryProcess) -> tuple[bytes, bytes]:
        kind, content = process.receive()
        if kind == b"E":
            found = json.loads(content)
            raise QueryFailed(f"the query failed: {found['message']}", code=found["code"])
        if not kind:
            self._unless_cancelled()
            raise self._feed_error or QueryFailed("the query took too much: its process ended", code="memory")
        return kind, content

    def _unless_cancelled(self) -> None:
        if self.cancelled:
            raise self.cancelled

    def _feed(self, process: QueryProcess, feeds: Sequence[Feed]) -> None:
        """Hand over what the tables hold, all at one moment."""
        try:
            self._cursor.execute(f"set operator_memory_limit = '{FEED_OPERATOR_MB}MB'")
            self._cursor.execute("begin transaction read only")
            for feed in feeds:
                relation = self._cursor.sql(feed.source_sql, params=list(feed.parameters) or None)
                reader = relation.to_arrow_reader(FEED_ROWS)
                with pa.ipc.new_stream(process.sink(), reader.schema) as writer:
                    while self._handed_over(reader, writer):
                        pass
            assert process.process.stdin is not None
            process.process.stdin.flush()
        except Exception as error:  # whoever reads the answer learns of it
            self._feed_error = error
            process.kill()

    def _handed_over(self, reader: pa.RecordBatchReader, writer: pa.RecordBatchWriter) -> bool:
        """The next batch, if there is one."""
        with self.queries.pace.work(self._unless_cancelled, others_too=True):
            batch = next(reader, None)
        if batch is not None:
            with self.queries.pace.work(self._unless_cancelled):
                writer.write_batch(batch)
        return batch is not None

    def cancel(self, why: QueryFailed) -> None:
        """Stop it at once; whoever reads it gets ``why``."""
        with self._lock:
            if self._closed:
                return
            self.cancelled = self.cancelled or why
            self._cursor.interrupt()
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """Give everything back. Call when nobody reads it any more."""
        self._timer.cancel()
        ended = self.rows is not None and self._fed(FEED_END_SECONDS)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            usable = ended and self._feed_error is None and self.cancelled is None
            if self._process is not None and not usable:
                self._process.kill()
                self._cursor.interrupt()
        self._fed(STOP_SECONDS)
        if self._process is not None:
            (self.queries.processes.give_back if usable else QueryProcess.bury)(self._process)
        if self._has_turn:
            self.queries.turns.release()
        self.session.close()
        self.queries.forget(self)

    def _fed(self, seconds: float) -> bool:
        if self._feeder is not None:
            self._feeder.join(seconds)
        return self._feeder is None or not self._feeder.is_alive()

    def _meaning(self, error: BaseException) -> BaseException:
        if self.cancelled:
            return self.cancelled
        if isinstance(error, OSError) and self._feed_error is None:
            return QueryFailed("the query took too much: its process ended", code="memory")
        if isinstance(error, ReplicatorError) or not isinstance(error, Exception):
            return error
        return QueryFailed(f"the query failed: {database_errors.first_line(error)}", code="query")


def _request(ask: Ask, feeds: Sequence[Feed], relations: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    return {
        "sql": ask.sql,
        "parameters": ask.parameters,
        "format": str(ask.form),
        "rows_max": ask.rows_max,
        "feeds": [
            {"relation": f.relation, "once": f.once, "columns": f.target_columns, "arguments": len(f.arguments)}
            for f in feeds
        ],
        "relations": {
            name: ", ".join(f"{quote(column)} {kind}" for column, kind in columns.items())
            for name, columns in relations.items()
        },
    }


@define
class Queries:
    """Opens queries. ``progress`` is capture's, where one runs; ``directory`` is for what does not fit into memory."""

    database: Database
    directory: Path
    progress: CaptureProgress | None = None
    processes: QueryProcesses = field(init=False)
    pace: Pace = field(init=False)
    turns: threading.Semaphore = field(factory=lambda: threading.BoundedSemaphore(RUNNING_MAX), init=False)
    _open: list[RunningQuery] = field(factory=list, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self.processes = QueryProcesses(directory=self.directory)
        self.pace = Pace(self.progress)

    def open(self, ask: Ask) -> RunningQuery:
        """A query that is to be started, and closed whatever comes. Raises QueriesBusy and UsageError."""
        if not 0 < ask.seconds <= SECONDS_MAX:
            raise UsageError(f"a query may take up to {SECONDS_MAX:.0f} s, not {ask.seconds:g} s")
        head = self.progress.released_head if self.progress else 0
        with self._lock:
            if len(self._open) >= OPEN_MAX:
                raise QueriesBusy(f"{OPEN_MAX} queries are open already", hint="ask again when one has ended")
            query = RunningQuery(queries=self, ask=ask, session=self.database.session(), head_offset=head)
            self._open.append(query)
        return query

    def forget(self, query: RunningQuery) -> None:
        """A query is closed."""
        with self._lock:
            self._open.remove(query)

    def relations(self, session: Session) -> dict[str, dict[str, str]]:
        """What may be named: tables and views with the types of their columns."""
        rows = session.rows(statement("query/columns"))
        return {name: dict(zip(columns, kinds, strict=True)) for name, columns, kinds in rows}

    def macros(self, session: Session, sql: str) -> dict[str, dict[str, str]]:
        """Our table macros that the text mentions, with the columns that each gives."""
        text, found = sql.lower(), {}
        for name, arguments in session.rows(statement("query/macros")):
            if name.lower() in text:
                call = f"{quote(name)}({', '.join(['null'] * arguments)})"
                found[name] = {row[0]: row[1] for row in session.rows(f"describe select * from {call}")}
        return found

    def captured(self, stream: str, entry_id: str) -> bool:
        """Whether an entry of a stream is in the log. Raises UsageError for a stream that is not captured."""
        positions = self.progress.positions if self.progress else {}
        if stream not in positions:
            known = ", ".join(sorted(positions)[:20]) or "none yet"
            raise UsageError(f"the stream {stream[:200]} is not captured", hint=f"captured: {known}")
        position = positions[stream]
        return _reached(entry_id, position.last_entry_id, position.last_entry_row)

    def close(self) -> None:
        """Cancel what runs and end all processes: the service ends."""
        with self._lock:
            running = list(self._open)
        for query in running:
            query.cancel(QueryFailed("the service stops", code="stop"))
        self.processes.close()


def _reached(entry_id: str, last_entry_id: str, last_entry_row: int | None) -> bool:
    try:
        wanted, last = entry_order(entry_id), entry_order(last_entry_id)
    except ValueError as error:
        raise UsageError(f"{entry_id[:60]!r} is no entry id", hint="give what XADD returned") from error
    return wanted < last or (wanted == last and last_entry_row is None)


def require_captured(session: Session, question: Question) -> None:
    """For a file that nobody adds to: raise EntryNotCaptured where it lacks the entry that the question names."""
    if question.min_entry_id is None:
        return
    stream, entry_id = question.min_entry_id
    row = session.row(statement("query/position"), [stream])
    if row is None or not _reached(entry_id, *row):
        raise EntryNotCaptured(
            f"entry {entry_id[:60]} of stream {stream[:200]} is not in the log, and no service runs that would add it",
            hint="start it with `replicator run`",
        )

"""ClickHouse: insert a batch, write the ledger, ask what it holds and what still runs.

Guarantees: an insert is sent once per call, as one block with one token, never retried below us; every error of
clickhouse-connect leaves here as one of ours, an insert that may have run as OutcomeUnknown. Never deletes rows.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
import urllib3.exceptions
from attrs import define, field, frozen
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from replicator.database_migrations import migration_checksum, read_migrations
from replicator.errors import OutcomeUnknown, ReplicatorError, SinkMisshapen, SinkRefused, SinkRejected, SinkUnavailable
from replicator.failpoints import failpoint
from replicator.lanes import Lane
from replicator.model import Checksum, OffsetRange
from replicator.retry import column_at_fault, kind_of_code
from replicator.wire import conform

INSERT_SETTINGS = {
    "async_insert": 0,
    "deduplicate_insert": "enable",
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "input_format_null_as_default": 0,
    "input_format_arrow_allow_missing_columns": 0,
    "max_insert_block_size": 1_048_576,
    "min_insert_block_size_rows": 0,
    "min_insert_block_size_bytes": 0,
    "wait_end_of_query": 1,
}
"""One block per insert, its token honoured, nothing defaulted in silence. Source: measured on ClickHouse 26.9."""
LEDGER = "replicator_batches"
SCHEMAS = "replicator_schemas"
QUERY_SIZE = 100_000
"""A longer query is announced to ClickHouse, which takes a quarter of a megabyte by itself."""
CLOSE_SECONDS = 0.5
_NOT_SENT = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
_URL = re.compile(
    r" \(for url [^)]*\)$| executing HTTP request attempt \d+ \(\S+\)$|HTTPConnectionPool\([^)]*\): | with url: \S+"
)
_VALUES = re.compile(r"[.,:]? Column values: .*$")
"""What ClickHouse tells of the row that violates a constraint: no row's values go into logs."""
_TRAILER = re.compile(r"\s*\(version \S+(?: \([^)]*\))?\)$")
_LOOPBACK = ("127.", "localhost", "::1", "[::1]")


@frozen(kw_only=True)
class SinkOptions:
    endpoint: str
    database: str = "default"
    user: str = "default"
    password: str = field(default="", repr=False)
    ca_cert: str | None = None
    connect_timeout_seconds: float = 10
    insert_timeout_seconds: float = 300


@frozen(kw_only=True)
class Send:
    """One sending of one range of one lane's target; what makes it recognisable in ClickHouse."""

    pipeline: str
    target: str
    offsets: OffsetRange
    checksum: Checksum
    send: int
    """``timeline << 48 | send_seq``: grows with every new send, not with an identical resend."""
    attempt: int
    schema: pa.Schema | None = None
    """What the batch must be to the letter; None: what it is."""

    @property
    def token(self) -> str:
        return f"{self.pipeline}/{self.target}/{self.offsets.first}-{self.offsets.last}/{self.checksum}/{self.send}"

    @property
    def comment(self) -> str:
        return f"{range_comment(self.pipeline, self.target, self.offsets)}{self.send}/{self.attempt}"


def quote(identifier: str) -> str:
    """An identifier for ClickHouse, whatever it contains."""
    return "`" + identifier.replace("\\", "\\\\").replace("`", "\\`") + "`"


def range_comment(pipeline: str, target: str, offsets: OffsetRange) -> str:
    """What every insert of this range has at the beginning of its log_comment."""
    return f"{pipeline}/{target}/{offsets.first}-{offsets.last}/"


@frozen(kw_only=True)
class LedgerRow:
    """One line of the ledger in ClickHouse, in the order of its columns."""

    pipeline: str
    table_name: str
    first_offset: int
    last_offset: int
    row_count: int
    checksum: str
    status: str
    send_seq: int
    timeline: int
    instance_id: str
    query_id: str
    delivered_at: Any


@frozen(kw_only=True)
class ServerFacts:
    version: str
    uptime_seconds: int


@define
class ClickHouseSink:
    """A connection pool to one ClickHouse; any thread may use it."""

    options: SinkOptions
    may_send: Callable[[], None] = lambda: None
    """Raises where this process may no longer send for its pipeline; asked before every insert."""
    _client: Client | None = field(default=None, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def client(self) -> Client:
        """The client, connected on first use. Raises SinkUnavailable or SinkRefused."""
        with self._lock:
            if self._client is None:
                with self._translated():
                    self._client = self._connect(self.options.database)
            return self._client

    def create_database(self) -> None:
        """Create the configured database where it is missing."""
        with self._translated():
            client = self._connect("")
            try:
                client.command(f"create database if not exists {quote(self.options.database)}")
            finally:
                client.close()

    def why_not_exchanged(self) -> str | None:
        """What keeps two tables of the database from changing places in one step; None where nothing does.

        chDB's ``default`` is an Overlay that is made of no other databases, and exchanges. Source: measured on chDB 4.4.
        """
        sql = "select name, engine, engine_full from system.databases where name = currentDatabase()"
        name, engine, full = self.rows(sql)[0]
        if engine in ("Atomic", "Replicated") or (engine == "Overlay" and not full):
            return None
        return (
            f"database {name} is of the engine {engine}, where tables cannot change places in one step: name one of the "
            "engine Atomic under [clickhouse] database (a new name is made so, and filled from the log)"
        )

    def _connect(self, database: str) -> Client:
        o = self.options
        parts = urlsplit(o.endpoint)
        secure = parts.scheme == "https"
        return clickhouse_connect.get_client(
            host=parts.hostname,
            port=parts.port or (8443 if secure else 8123),
            interface=parts.scheme,
            username=o.user,
            password=o.password,
            database=database,
            ca_cert=o.ca_cert,
            compress=False if (parts.hostname or "").startswith(_LOOPBACK) else "lz4",
            connect_timeout=o.connect_timeout_seconds,
            send_receive_timeout=o.insert_timeout_seconds,
            autogenerate_session_id=False,
            query_retries=0,
            client_name="replicator",
            tz_mode="naive_utc",
        )

    def insert(self, send: Send, batch: pa.Table) -> str:
        """Insert one batch as one block. Returns the query id.

        ``batch`` has the target's columns in one chunk. Raises OutcomeUnknown when it may or may not have run.
        """
        query_id = f"replicator:{send.comment.replace('/', ':')}:{secrets.token_hex(4)}"
        settings = {**INSERT_SETTINGS, "insert_deduplication_token": send.token, "log_comment": send.comment}
        with self._translated(inserting=True):
            exact = batch if send.schema is None else conform(batch, send.schema)
        self._insert(send.target, exact, {**settings, "query_id": query_id})
        return query_id

    def _insert(self, target: str, batch: pa.Table, settings: dict[str, Any]) -> None:
        self.may_send()
        client = self.client()
        with self._translated(inserting=True):
            summary = client.insert_arrow(quote(target), batch, settings=settings)
        if not summary.query_id():
            raise OutcomeUnknown(
                f"insert into {target}: what answers at {self.options.endpoint} is not ClickHouse",
                hint="check [sync] clickhouse_endpoint, and what stands between",
            )

    def record(self, rows: Sequence[LedgerRow]) -> None:
        """Write ledger rows in one insert. Writing a row again is harmless."""
        columns = [a.name for a in LedgerRow.__attrs_attrs__]
        batch = pa.table({name: [getattr(row, name) for row in rows] for name in columns})
        at = batch.schema.get_field_index("delivered_at")
        batch = batch.set_column(at, "delivered_at", batch["delivered_at"].cast(pa.timestamp("us", "UTC")))
        settings = {**INSERT_SETTINGS, "deduplicate_insert": "disable", "log_comment": f"{rows[0].pipeline}/ledger"}
        self._insert(LEDGER, batch, settings)

    def record_schemas(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write down how tables are declared: rows of SCHEMAS. Writing one again is harmless."""
        kinds = [("pipeline", pa.string()), ("table_name", pa.string()), ("schema_version", pa.int32())]
        kinds += [("definition", pa.string()), ("rebuilt", pa.uint8())]
        batch = pa.Table.from_pylist([dict(row) for row in rows], pa.schema(kinds))
        self._insert(SCHEMAS, batch, {"async_insert": 0})

    def running(self, pipeline: str, target: str, offsets: OffsetRange) -> int:
        """How many inserts of this range ClickHouse is running now."""
        prefix = range_comment(pipeline, target, offsets)
        return int(
            self.scalar(
                "select count() from system.processes where startsWith(Settings['log_comment'], {prefix:String})",
                {"prefix": prefix},
            )
        )

    def held(self, lane: Lane, pipeline: str, offsets: OffsetRange) -> Checksum:
        """What the lane's log table holds of a range, each offset once, in its newest send."""
        count, total, xor = self.rows(lane.held_sql(), _where(pipeline, offsets))[0]
        return Checksum(rows=int(count), sum=int(total), xor=int(xor))

    def keys_behind(self, lane: Lane, pipeline: str, offsets: OffsetRange) -> int:
        """How many keys of a range have not reached their last version in the lane's state table, if it has one."""
        return int(self.scalar(lane.state_check, _where(pipeline, offsets))) if lane.state_check else 0

    def rows_of_send(self, lane: Lane, pipeline: str, offsets: OffsetRange, send: int) -> int:
        """How many rows of a range one send has left in the lane's log table."""
        return int(self.scalar(lane.sent_rows_sql(), {**_where(pipeline, offsets), "send": send}))

    def inserting(self, pipeline: str, target: str) -> list[OffsetRange]:
        """The ranges of this target of which ClickHouse is running an insert now."""
        prefix = f"{pipeline}/{target}/"
        sql = "select Settings['log_comment'] from system.processes where startsWith(Settings['log_comment'], {prefix:String})"
        ranges = [comment.removeprefix(prefix).partition("/")[0] for (comment,) in self.rows(sql, {"prefix": prefix})]
        bounds = [text.partition("-") for text in ranges]
        return [OffsetRange(first=int(first), last=int(last)) for first, _, last in bounds]

    def server(self) -> ServerFacts:
        version, uptime = self.rows("select version(), uptime()")[0]
        return ServerFacts(version=version, uptime_seconds=uptime)

    def scalar(self, sql: str, parameters: dict[str, Any] | None = None) -> Any:
        return self.rows(sql, parameters)[0][0]

    def rows(self, sql: str, parameters: dict[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        client = self.client()
        settings = {"max_query_size": 2 * len(sql)} if len(sql) > QUERY_SIZE else None
        with self._translated():
            return client.query(sql, parameters=parameters or {}, settings=settings).result_rows

    def arrow(self, sql: str, parameters: dict[str, Any] | None = None) -> pa.Table:
        client = self.client()
        with self._translated():
            return client.query_arrow(sql, parameters=parameters or {})

    def command(
        self, sql: str, settings: dict[str, Any] | None = None, parameters: dict[str, Any] | None = None
    ) -> None:
        client = self.client()
        with self._translated():
            client.command(sql, parameters=parameters or {}, settings=settings or {})

    def columns(self, table: str) -> dict[str, str]:
        """The table's columns and types as ClickHouse has them now; empty when there is no such table."""
        sql = "select name, type from system.columns where database = currentDatabase() and table = {table:String} order by position"
        return dict(self.rows(sql, {"table": table}))

    def columns_of(self, tables: Sequence[str]) -> dict[str, dict[str, str]]:
        """The columns and types of those of the tables that exist, in one query."""
        sql = (
            "select table, name, type from system.columns "
            "where database = currentDatabase() and table in {tables:Array(String)} order by table, position"
        )
        found: dict[str, dict[str, str]] = {}
        for table, name, kind in self.rows(sql, {"tables": list(tables)}):
            found.setdefault(table, {})[name] = kind
        return found

    def migrate(self, directory: Path) -> list[str]:
        """Apply migrations not yet applied; each is re-runnable, so a lost record does no harm. Returns their names.

        Raises LogCorrupt when an applied file was edited or is missing.
        """
        try:
            self.client()  # the usual case by far, and four requests less on the way to the first batch
        except SinkMisshapen:
            self.create_database()
        self.command(
            "create table if not exists replicator_migrations (name String, checksum String, applied_at DateTime64(6, 'UTC') default now64(6)) "
            "engine = ReplacingMergeTree order by name settings fsync_after_insert = 1, fsync_part_directory = 1"
        )
        applied = dict(self.rows("select name, checksum from replicator_migrations final"))
        scripts = read_migrations(directory, applied)
        for name, text in scripts:
            self.command(text)
            failpoint("sink_migration.inside")
            batch = pa.table({"name": [name], "checksum": [migration_checksum(text)]})
            self._insert("replicator_migrations", batch, {"async_insert": 0})
        return [name for name, _ in scripts]

    def forget(self) -> None:
        """Drop pooled connections: the next call connects anew."""
        with self._lock:
            if self._client is not None:
                self._client.close_connections()

    def close(self) -> None:
        """Close idle connections. Does not wait for a thread that is connecting to a server that does not answer."""
        if self._lock.acquire(timeout=CLOSE_SECONDS):
            try:
                if self._client is not None:
                    self._client.close()
                    self._client = None
            finally:
                self._lock.release()

    @contextmanager
    def _translated(self, *, inserting: bool = False) -> Iterator[None]:
        """The one place where the driver's errors become ours."""
        try:
            yield
        except ClickHouseError as error:
            raise _translate(error, self.options.endpoint, inserting=inserting) from error
        except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
            kind = SinkRejected if inserting else SinkUnavailable
            raise kind(f"{type(error).__name__}: {_brief(error)}", code=type(error).__name__) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            kind = OutcomeUnknown if inserting else SinkUnavailable
            raise kind(f"ClickHouse at {self.options.endpoint}: {_brief(error)}") from error


def _where(pipeline: str, offsets: OffsetRange) -> dict[str, Any]:
    return {"pipeline": pipeline, "first": offsets.first, "last": offsets.last}


def _translate(error: ClickHouseError, endpoint: str, *, inserting: bool) -> ReplicatorError:
    code = getattr(error, "code", None)
    if isinstance(code, int):
        kind = kind_of_code(code, str(error), inserting=inserting)
        if kind is SinkRefused:
            hint = "set clickhouse_user and clickhouse_password; `replicator check` prints the grants to give"
        else:
            hint = "see `replicator check`" if kind is SinkMisshapen else ""
        column = column_at_fault(str(error)) if inserting else None
        return kind(f"ClickHouse at {endpoint}: {_brief(error)}", code=code, hint=hint, column=column)
    hint = "start ClickHouse, or check [sync] clickhouse_endpoint"
    if inserting and not _never_sent(error) and not _answered(error):
        return OutcomeUnknown(f"insert into ClickHouse at {endpoint}: {_brief(error)}")
    return SinkUnavailable(f"ClickHouse at {endpoint} does not answer as it should: {_brief(error)}", hint=hint)


def _never_sent(error: BaseException | None) -> bool:
    """Whether the connection was never made, so that nothing can have run."""
    while error is not None:
        reason = getattr(error, "reason", None)
        if isinstance(error, _NOT_SENT) or isinstance(reason, _NOT_SENT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _answered(error: BaseException) -> bool:
    """Whether an HTTP answer came, refusing the request before ClickHouse ran it (a proxy's 502 says nothing)."""
    return any(f"HTTP status {status}" in str(error) for status in (429, 503))


def _brief(error: BaseException) -> str:
    text = _VALUES.sub("", _URL.sub("", " ".join(str(error).split())))
    return _TRAILER.sub("", text)[:600] or type(error).__name__

"""The chDB engine: one per process, one fresh handle per query.

A handle costs a fifth of a millisecond, so each query gets its own: its settings, database and read-only state are
set on it and vanish with it, and queries run in parallel. Guarantees that a setting either reaches the engine or fails
the query. It must never use ``Connection.send_insert``, which reports success and loses the rows when a constraint or
a view fails (chdb 4.4), nor open a second path, nor take a ``config.xml`` that lies in the current directory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import chdb
from attrs import field, frozen

from replicator.embedded.clickhouse_form import ExternalTable
from replicator.embedded.clickhouse_query_id import CARRIER, with_client_ids

_ERROR_CODE = re.compile(r"Code: (\d+)\. DB::Exception: ")
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_CONFIG = """<clickhouse>
  <query_log>
    <database>system</database>
    <table>query_log</table>
    <ttl>event_date + INTERVAL 3 DAY DELETE</ttl>
  </query_log>
</clickhouse>
"""
_FAILURES = (chdb.ChdbError, RuntimeError, UnicodeDecodeError)
"""What chDB raises; the last when its message quotes bytes that are not UTF-8."""
_DEFAULTS = {"log_queries": "1", "calculate_text_stack_trace": "0", "implicit_select": "0"}
"""Where chDB departs from a server's defaults, and stack traces that nobody reads."""
_READS = frozenset(
    "SELECT WITH FROM SHOW DESCRIBE DESC EXISTS EXPLAIN CHECK KILL VALUES".split()  # noqa: SIM905 - a list of words
)


class EngineError(Exception):
    """ClickHouse's own error: its code and its text as a server would send it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


def clickhouse_error(code: int, name: str, message: str) -> EngineError:
    """An error of the front itself, in ClickHouse's words."""
    return EngineError(code, f"Code: {code}. DB::Exception: {message} ({name})")


@frozen(kw_only=True)
class Query:
    """One statement with everything that goes with it."""

    statement: bytes
    query_id: str
    first_word: str = ""
    database: str = ""
    output_format: str = "TabSeparated"
    settings: Mapping[str, str] = field(factory=dict)
    parameters: Mapping[str, str] = field(factory=dict)
    readonly: bool = False
    externals: Sequence[ExternalTable] = ()

    def preparations(self) -> list[bytes]:
        """The statements that bring a fresh handle into the state this query asks for."""
        assignments = {CARRIER: self.query_id, **_DEFAULTS, **self.settings}
        if self.readonly and assignments.get("readonly", "0") == "0":
            assignments["readonly"] = "2"
        text = ", ".join(f"{_setting_name(name)} = {_quoted(value)}" for name, value in assignments.items())
        use = [f"USE {_quoted(self.database, '`')}"] if self.database else []
        tables = [statement for table in self.externals for statement in table.preparations()]
        return [statement.encode("utf-8", "surrogateescape") for statement in (*use, f"SET {text}", *tables)]


@frozen(kw_only=True)
class Answer:
    """What a query gave: its output in the format asked for, and the engine's counts."""

    output: bytes
    has_result: bool
    result_rows: int
    read_rows: int
    read_bytes: int
    written_rows: int
    written_bytes: int
    elapsed_ns: int

    def summary(self) -> str:
        """The counts as X-ClickHouse-Summary words them."""
        counts = {
            "read_rows": self.read_rows,
            "read_bytes": self.read_bytes,
            "written_rows": self.written_rows,
            "written_bytes": self.written_bytes,
            "total_rows_to_read": self.read_rows,
            "result_rows": self.result_rows,
            "result_bytes": len(self.output),
            "elapsed_ns": self.elapsed_ns,
        }
        return json.dumps({name: str(value) for name, value in counts.items()})


class Engine:
    """The engine in ``directory``, which becomes the current one: chDB's addresses cannot hold every path."""

    def __init__(self, directory: Path) -> None:
        os.chdir(directory)
        Path("engine.xml").write_text(_CONFIG, encoding="utf-8")
        self._anchor = self._handle()  # keeps the engine open between queries
        facts = self._anchor.query("select version(), timezone(), hostName()", "TabSeparated").bytes().decode()
        self.version, self.timezone, self.host_name = facts.strip().split("\t")

    def close(self) -> None:
        """Close the engine once no handle is in use."""
        self._anchor.close()

    def run(self, query: Query) -> Answer:
        """Run one query to its end; raises EngineError."""
        handle = self._handle()
        try:
            self._prepare(handle, query)
            statement = with_client_ids(query.statement)
            result = handle.query(statement, query.output_format, params=dict(query.parameters))
            output = result.bytes() or b""
            return Answer(
                output=output,
                has_result=bool(output) or query.first_word in _READS,
                result_rows=result.rows_read() if output else 0,
                read_rows=result.storage_rows_read(),
                read_bytes=result.storage_bytes_read(),
                written_rows=result.rows_written(),
                written_bytes=result.bytes_written(),
                elapsed_ns=int(result.elapsed() * 1e9),
            )
        except _FAILURES as error:
            raise self._translated(error) from error
        finally:
            handle.close()

    def stream(self, query: Query) -> Generator[bytes, None, None]:
        """Run one SELECT and yield its output piece by piece; raises EngineError, also midway.

        Only for formats whose pieces join into a whole. Closing the iterator cancels the query.
        """
        handle = self._handle()
        try:
            self._prepare(handle, query)
            statement = with_client_ids(query.statement)
            with handle.send_query(statement, query.output_format, params=dict(query.parameters)) as pieces:
                yield from (piece.bytes() for piece in pieces)
        except _FAILURES as error:
            raise self._translated(error) from error
        finally:
            handle.close()

    def _handle(self) -> chdb.state.sqlitelike.Connection:
        return chdb.connect("engine?config-file=engine.xml&log_queries=0")

    @staticmethod
    def _prepare(handle: chdb.state.sqlitelike.Connection, query: Query) -> None:
        for preparation in query.preparations():
            handle.query(preparation, "Null")

    def _translated(self, error: Exception) -> EngineError:
        text = error.object.decode("utf-8", "backslashreplace") if isinstance(error, UnicodeDecodeError) else str(error)
        match = _ERROR_CODE.search(text)
        if match is None:
            return clickhouse_error(1002, "UNKNOWN_EXCEPTION", text)
        return EngineError(int(match.group(1)), f"{text[match.start() :].rstrip()} (version {self.version})")


def _setting_name(name: str) -> str:
    if not _SETTING_NAME.match(name):
        raise clickhouse_error(115, "UNKNOWN_SETTING", f"Unknown setting '{name}'")
    return name


def _quoted(value: str, quote: str = "'") -> str:
    return quote + value.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote

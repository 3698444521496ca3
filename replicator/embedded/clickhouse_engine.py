"""The chDB engine: one per process, one fresh handle per query.

A handle costs a fifth of a millisecond, so each query gets its own: its settings, database and read-only state are
set on it and vanish with it, and queries run in parallel. Guarantees that a setting either reaches the engine or fails
the query. It must never use ``Connection.send_insert``, which reports success and loses the rows when a constraint or
a view fails (chdb 4.4), nor open a second path.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

import chdb
from attrs import field, frozen

_ERROR_CODE = re.compile(r"Code: (\d+)\. DB::Exception: ")
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


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

    statement: str
    database: str = ""
    output_format: str = "TabSeparated"
    settings: Mapping[str, str] = field(factory=dict)
    parameters: Mapping[str, str] = field(factory=dict)
    readonly: bool = False


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
    """The engine at ``path``. It lives until ``close``."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._anchor = chdb.connect(self._path)  # keeps the engine open between queries
        facts = self._anchor.query("select version(), timezone(), hostName()", "TabSeparated").bytes().decode()
        self.version, self.timezone, self.host_name = facts.strip().split("\t")

    def close(self) -> None:
        """Close the engine once no handle is in use."""
        self._anchor.close()

    def run(self, query: Query) -> Answer:
        """Run one query to its end; raises EngineError."""
        handle = chdb.connect(self._path)
        try:
            for preparation in _preparations(query):
                handle.query(preparation, "Null")
            result = handle.query(query.statement, query.output_format, params=dict(query.parameters))
            output = result.bytes() or b""
            return Answer(
                output=output,
                has_result=bool(output) or self._reads(handle, query.statement),
                result_rows=result.rows_read(),
                read_rows=result.storage_rows_read(),
                read_bytes=result.storage_bytes_read(),
                written_rows=result.rows_written(),
                written_bytes=result.bytes_written(),
                elapsed_ns=int(result.elapsed() * 1e9),
            )
        except (chdb.ChdbError, RuntimeError) as error:
            raise self._translated(error) from error
        finally:
            handle.close()

    @staticmethod
    def _reads(handle: chdb.state.sqlitelike.Connection, statement: str) -> bool:
        return handle._conn.classify_query(statement)["query_class"].name == "READ_ONLY"

    def _translated(self, error: Exception) -> EngineError:
        text = str(error)
        codes = list(_ERROR_CODE.finditer(text))
        if not codes:
            return clickhouse_error(1002, "UNKNOWN_EXCEPTION", text)
        return EngineError(int(codes[0].group(1)), f"{text[codes[0].start() :]} (version {self.version})")


def _preparations(query: Query) -> list[str]:
    statements = []
    if query.database:
        statements.append(f"USE `{query.database.replace(chr(92), chr(92) * 2).replace('`', chr(92) + '`')}`")
    assignments = [f"{_setting_name(name)} = {_quoted(value)}" for name, value in query.settings.items()]
    if query.readonly:
        assignments.append("readonly = 2")
    if assignments:
        statements.append(f"SET {', '.join(assignments)}")
    return statements


def _setting_name(name: str) -> str:
    if not _SETTING_NAME.match(name):
        raise clickhouse_error(115, "UNKNOWN_SETTING", f"Unknown setting '{name}'")
    return name


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def new_query_id() -> str:
    """A query id as ClickHouse makes them."""
    return str(uuid.uuid4())

"""``DuckDBManager.conn``: what programs know of a DuckDB connection, whichever way the answer comes.

Guarantees: each thread reads the answer to its own last question. Every statement is a transaction of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from attrs import define, field

from replicator.errors import UsageError
from replicator.query_formats import DUCKDB_TYPE
from replicator.query_rows import python_rows


@define(eq=False)
class Answer:
    """A whole answer, of which rows are fetched in turn, as of a DuckDB relation or cursor."""

    table: pa.Table
    _rest: Iterator[tuple[Any, ...]] | None = None

    @property
    def columns(self) -> list[str]:
        return list(self.table.column_names)

    @property
    def description(self) -> list[tuple[Any, ...]]:
        """As the DB-API has it: for each column its name and DuckDB's type."""
        kinds = [(field.metadata or {}).get(DUCKDB_TYPE, b"").decode() for field in self.table.schema]
        return [(name, kind, None, None, None, None, None) for name, kind in zip(self.columns, kinds, strict=True)]

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        if self._rest is None:
            self._rest = iter(python_rows(self.table))
        return self._rest

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(self._rows(), None)

    def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        return [row for _, row in zip(range(size), self._rows(), strict=False)]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self._rows())

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._rows()

    def to_arrow_table(self) -> pa.Table:
        return self.table

    arrow = fetch_arrow_table = to_arrow_table

    def df(self) -> Any:
        """A pandas DataFrame: decimals as Decimal, integers never as floats. Raises UsageError without pandas."""
        try:
            return self.table.to_pandas(integer_object_nulls=True)
        except ImportError as error:
            raise UsageError("pandas is not installed", hint="pip install pandas, or use query_arrow") from error

    fetchdf = to_df = df


@define(eq=False)
class Connection:
    """``ask(sql, parameters)`` gives the whole answer as Arrow; ``end`` closes the manager."""

    ask: Callable[[str, Any], pa.Table]
    end: Callable[[], None]
    _last: threading.local = field(factory=threading.local)

    def execute(self, query: str, parameters: Any = None) -> Answer:
        answer = Answer(self.ask(query, parameters))
        self._last.answer = answer
        return answer

    sql = query = execute

    def cursor(self) -> Connection:
        return Connection(self.ask, self.end)

    def _answer(self) -> Answer:
        answer: Answer | None = getattr(self._last, "answer", None)
        if answer is None:
            raise UsageError("nothing was asked yet in this thread", hint="execute a query first")
        return answer

    @property
    def description(self) -> list[tuple[Any, ...]]:
        return self._answer().description

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._answer().fetchone()

    def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        return self._answer().fetchmany(size)

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self._answer().fetchall()

    def fetchdf(self) -> Any:
        return self._answer().df()

    def fetch_arrow_table(self) -> pa.Table:
        return self._answer().table

    def close(self) -> None:
        self.end()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""The names in the DuckDB file that are the replicator's, and what to say to one who would change them by SQL.

Guarantees: a change of a table we manage is refused by the table's name with the way to make it. The reader's other
refusals stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from attrs import frozen

from replicator.config import Settings, TableConfig, migrations_dir
from replicator.errors import UsageError
from replicator.readonly import QueryRefused
from replicator.schema import TableSchema
from replicator.sql_targets import written_names

_MADE = re.compile(r"create (?:table|sequence|view)(?: if not exists)? (\w+)")


class TableManaged(QueryRefused):
    """SQL would change a table that the replicator keeps: the change would bypass the log."""


@frozen(kw_only=True)
class Managed:
    """By name in lower case: the declared table it belongs to, or None for the replicator's own records."""

    tables: Mapping[str, TableConfig | None]

    @classmethod
    def of(cls, settings: Settings) -> Managed:
        scripts = "\n".join(path.read_text() for path in sorted((migrations_dir() / "duckdb").glob("*.sql")))
        own = {*_MADE.findall(scripts), "schema_migrations", settings.writer.error_handling.failed_sync_table}
        tables: dict[str, TableConfig | None] = dict.fromkeys((name.lower() for name in own), None)
        for table in settings.tables:
            schema = TableSchema(name=table.name, columns=(), key=())
            for name in (schema.name, schema.log_name, schema.state_name, schema.as_of_name, schema.as_of_time_name):
                tables[name.lower()] = table
        return cls(tables=tables)

    def check(self, sql: str) -> None:
        """Raise TableManaged where the statements would change one of them."""
        for name in written_names(sql):
            if name in self.tables:
                raise _managed(name, self.tables[name])

    @contextmanager
    def explaining(self, sql: str) -> Iterator[None]:
        """A refusal inside becomes one that names the table and the way, where the statement would change one."""
        try:
            yield
        except TableManaged:
            raise
        except UsageError:
            self.check(sql)
            raise


def _managed(name: str, table: TableConfig | None) -> TableManaged:
    if table is None:
        return TableManaged(
            f"{name} is the replicator's own record and is not changed by SQL",
            hint="to log a change, XADD it to its table's stream; `replicator --help` lists what an operator may do",
            code="refused",
        )
    return TableManaged(
        f"{name} is fed from the stream {table.stream} and is not changed by SQL: the change would bypass the log",
        hint=f"XADD {table.stream} '*' op u data '{{…}}', or replicator.Producer().upsert({table.name!r}, {{…}})",
        code="refused",
    )

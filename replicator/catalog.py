"""The declared tables as they are now and as they were: schemas by version, and the lanes deliver sends them in.

Guarantees: a change is typed, sent and hashed by the schema version it was logged under. Never changes a table in
ClickHouse that it did not make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import define, field

from replicator.config import TableConfig
from replicator.database import Database
from replicator.lanes import Lane, generic_lane
from replicator.model import GENERIC_LANE
from replicator.sink import ClickHouseSink


@define
class Catalog:
    """Shared by capture and deliver; replaced as a whole when the configuration is read again."""

    database: Database
    encodings: Mapping[str, str] = field(factory=dict)
    _generic: Lane = field(factory=generic_lane)

    @classmethod
    def open(cls, database: Database, tables: Sequence[TableConfig]) -> Catalog:
        """The catalog for the configured tables."""
        return cls(database=database, encodings={t.stream: t.encoding for t in tables if t.encoding != "auto"})

    @property
    def lane_names(self) -> list[str]:
        return [GENERIC_LANE]

    def lane(self, name: str, schema_version: int) -> Lane:
        """The lane of a table at one schema version."""
        assert name == GENERIC_LANE and schema_version == 0, (name, schema_version)
        return self._generic

    def prepare(self, sink: ClickHouseSink) -> list[str]:
        """Make the declared tables in ClickHouse where they are missing. Returns what was done."""
        return []

"""How many rows each table has on both sides, counted now and then while somebody looks at the page.

Guarantees: costs nothing while nobody looks, and a small share of the time otherwise; a silent ClickHouse holds up
nothing but its own count; what could not be counted is not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from attrs import define

from replicator.database import statement
from replicator.errors import ReplicatorError
from replicator.model import GENERIC_LANE

if TYPE_CHECKING:
    from replicator.running import RunningService

WAKE_SECONDS = 1.0
COUNT_SECONDS = 10.0
COST_SHARE = 50
"""A count that took a second is made every 50 seconds."""


@define
class RowCounts:
    """``log`` and ``sink`` hold the latest counts by table; None until there are any."""

    running: RunningService
    wanted: Callable[[], bool]
    log: Mapping[str, int] | None = None
    sink: Mapping[str, int] | None = None

    def run(self) -> None:
        """Until the service stops."""
        stop, due = self.running.service.stop, 0.0
        while not stop.wait(WAKE_SECONDS):
            if not self.wanted():
                self.log, self.sink, due = None, None, 0.0
            elif time.monotonic() >= due:
                started = time.monotonic()
                self.count()
                ended = time.monotonic()
                due = ended + max(COUNT_SECONDS, COST_SHARE * (ended - started))

    def count(self) -> None:
        """Count both sides now."""
        service = self.running.service
        session = service.database.session()
        try:
            self.log = dict(session.rows(statement("page/log_rows")))
        finally:
            session.close()
        self.sink = self._sink_rows()

    def _sink_rows(self) -> dict[str, int] | None:
        probe, catalog = self.running.probe, self.running.service.catalog
        if probe.clickhouse is None or probe.clickhouse.error:
            return None
        targets = {catalog.lane(name, 0).target: name for name in [*catalog.current, GENERIC_LANE]}
        try:
            found = probe.sink.rows(statement("page/sink_rows"), {"tables": list(targets)})
        except ReplicatorError:
            return None
        return {targets[target]: rows for target, rows in found if rows is not None}

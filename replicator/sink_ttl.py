"""How long ClickHouse keeps the history: the TTL of the log tables, as configured now.

Guarantees: only ``change_log`` and each T_log ever get one, never T_state, so that current rows do not expire; one that
is not of our form is somebody else's, and stays unless ours is configured. Never waits until old rows are gone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import structlog

from replicator.schema import quote_clickhouse
from replicator.sink import ClickHouseSink
from replicator.sink_ddl import ttl_expression

DECLARED = re.compile(r"\bTTL (.+?)(?: SETTINGS |$)", re.DOTALL)
OURS = re.compile(r"toDateTime\(_?logged_at\) \+ toIntervalDay\((\d+)\)")

log = structlog.get_logger(__name__)


def set_log_ttl(sink: ClickHouseSink, tables: Mapping[str, str], days: int) -> list[str]:
    """Give log tables (name: the column of the time of logging) a TTL of so many days, or none where 0.

    Returns what was changed, in words. Tables that do not exist are left out.
    """
    sql = (
        "select name, engine_full from system.tables "
        "where database = currentDatabase() and name in {tables:Array(String)} order by name"
    )
    changed = []
    for name, engine in sink.rows(sql, {"tables": list(tables)}):
        found = DECLARED.search(engine)
        declared = found[1].strip().replace("`", "") if found else ""
        ours = OURS.fullmatch(declared)
        before = int(ours[1]) if ours else 0
        if before == days and (ours or not days):
            if declared and not ours:
                log.warning("foreign_ttl", table=name, ttl=declared)
            continue
        table = quote_clickhouse(name)
        action = f"modify ttl {ttl_expression(tables[name], days)}" if days else "remove ttl"
        sink.command(f"alter table {table} {action} settings mutations_sync = 0, alter_sync = 1")
        changed.append(f"{name} keeps {f'{days} days' if days else 'everything'}")
    return changed

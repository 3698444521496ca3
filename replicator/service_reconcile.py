"""How the service puts the comparison of both ends together, and readies ClickHouse for it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from replicator.catalog import Catalog
from replicator.config import migrations_dir
from replicator.database import Session
from replicator.database_migrations import read_migrations
from replicator.model import GENERIC_LANE
from replicator.reconcile import Reconciler
from replicator.sink import LEDGER, SCHEMAS, ClickHouseSink
from replicator.sink_return import SinkReturn
from replicator.sink_ttl import set_log_ttl
from replicator.standing import SinkStanding

if TYPE_CHECKING:
    from replicator.service import Service


def prepare_sink(sink: ClickHouseSink, catalog: Catalog) -> list[str]:
    """Our tables in ClickHouse: migrations, then the declared tables. Returns what was applied."""
    scripts = migrations_dir() / "clickhouse"
    applied = sink.migrate(scripts)
    if (
        len(sink.columns_of([GENERIC_LANE, LEDGER, SCHEMAS])) < 3
    ):  # dropped behind our back: each script may be run again
        for _, text in read_migrations(scripts, {}):
            sink.command(text)
    applied += catalog.prepare(sink)
    tables = {schema.log_name: "_logged_at" for schema in catalog.current.values()}
    return applied + set_log_ttl(sink, {GENERIC_LANE: "logged_at", **tables}, catalog.log_ttl_days)


def build_reconciler(service: Service) -> Reconciler:
    catalog, deliver, sink = service.catalog, service.deliver, service.sink
    tables = {name: schema.log_name for name, schema in catalog.current.items()}
    standing = SinkStanding(sink=sink, pipeline=service.settings.pipeline.name, tables=lambda: tables)

    def sink_return(session: Session) -> SinkReturn:
        return SinkReturn(
            session=session,
            ledger=service.ledger,
            sink=standing,
            lane=catalog.lane,
            ledger_row=lambda batch, status: deliver.recorder.row(batch, status, ""),
            prepare=lambda lane, offsets: deliver.worker.prepare(lane, offsets, lane.schema_version).as_new_batch(),
            holds=deliver.worker.holds,
            ttl=timedelta(days=days) if (days := service.settings.clickhouse.log_ttl_days) else None,
        )

    def known_version(table: str, version: int) -> int:
        versions = [schema.schema_version for schema in catalog.history(table)]
        return version if version in versions or not version else max(versions, default=0)

    return Reconciler(
        database=service.database,
        changelog=service.changelog,
        source=service.source,
        streams=lambda: catalog.routes.streams,
        standing=standing,
        sink_return=sink_return,
        known_version=known_version,
        interrupt=service.interrupt_delivery,
        redis_silent=lambda: "capture" in service.loops and service.loops["capture"].unavailable,
        stop=service.stop,
    )

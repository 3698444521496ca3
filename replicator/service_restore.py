"""Restore as the command runs it: with no service, on a file that is not there yet."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve

from replicator.config import Settings
from replicator.database import Session
from replicator.errors import SinkMisshapen, UsageError
from replicator.restore import Restorer, take_schemas
from replicator.service import Service, build_sink, open_database
from replicator.service_job import Jobs
from replicator.service_verify import Task, Verification
from replicator.sink import SCHEMAS
from replicator.verify_report import VerifyRequest

Watch = Callable[[int, int, str], None]
"""Told of rows done, rows to do, and what is being done."""


def restore(settings: Settings, *, actor: str, dry_run: bool, watch: Watch) -> dict[str, Any]:
    """Fill the configured file from ClickHouse, compare both, and say what is lost. A dry run makes no file there."""
    if dry_run:
        path = settings.writer.database.path
        if path.exists():
            return _look(settings)
        with tempfile.TemporaryDirectory(prefix="replicator-restore-") as directory:
            return _look(_elsewhere(settings, Path(directory) / path.name))
    _take_schemas(settings)
    service = Service.build(settings)
    try:
        return _restore(service, actor, watch)
    finally:
        service.shut_down()


def _elsewhere(settings: Settings, path: Path) -> Settings:
    writer = evolve(settings.writer, database=evolve(settings.writer.database, path=path))
    return evolve(settings, writer=writer)


def _look(settings: Settings) -> dict[str, Any]:
    service = Service.build(settings)
    session = service.database.session()
    try:
        restorer = _restorer(service, session)
        found = restorer.look()
        return {"dry_run": True, **found, **restorer.foresee().as_json()}
    finally:
        session.close()
        service.shut_down()


def _restore(service: Service, actor: str, watch: Watch) -> dict[str, Any]:
    session = service.database.session()
    done = 0

    def fetched(rows: int) -> None:
        nonlocal done
        done += rows
        watch(done, found["head_offset"] - found["first_offset"] + 1, "fetching")

    restorer = _restorer(service, session)
    restorer.watch = fetched
    found = restorer.look()
    before = service.ownership.take_over(service.stop)
    service.ownership.acquire(service.stop)
    restored = restorer.restore(actor=actor)
    session.close()
    jobs = Jobs(database=service.database, stop=service.stop)
    verified = Verification(service=service, jobs=jobs).run(
        Task(request=VerifyRequest(), actor=actor), lambda p: watch(p.rows, p.rows_expected, p.what)
    )
    mismatches, rows = verified["mismatches"], verified["rows"]
    answer = {"dry_run": False, "taken_from": before, **restored.as_json()}
    return {**answer, "mismatches": mismatches, "rows_verified": rows, "problems": verified["problems"]}


def _restorer(service: Service, session: Session) -> Restorer:
    reconciler = service.reconciler
    return Restorer(
        session=session,
        changelog=service.changelog,
        sink=reconciler.standing,
        published_head=service.source.published_head,
        describe=service.source.describe,
        streams=lambda: service.catalog.routes.streams,
        known_version=reconciler.known_version,
        failed_table=service.ledger.failed_table,
        ttl=bool(service.settings.clickhouse.log_ttl_days),
        await_stillness=lambda: reconciler.standing.await_stillness(service.stop),
    )


def _take_schemas(settings: Settings) -> None:
    """Before anything is declared: the file knows again how its tables were declared, version by version."""
    sink = build_sink(settings)
    try:
        sql = (
            f"select table_name, schema_version, definition, rebuilt from {SCHEMAS} final "
            "where pipeline = {pipeline:String} order by table_name, schema_version"
        )
        rows = sink.rows(sql, {"pipeline": settings.pipeline.name})
    except SinkMisshapen:  # made by a release that did not write them: what is configured has to do
        rows = ()
    finally:
        sink.close()
    known = {(table, int(version)): (text, bool(rebuilt)) for table, version, text, rebuilt in rows}
    database = open_database(settings)
    session = database.session()
    try:
        [(logged, schemas)] = session.rows(
            "select (select count(*) from change_log limit 1), (select count(*) from table_schemas)"
        )
        if logged:
            raise UsageError(
                "the file holds a log: a restore fills an empty one only",
                hint="`replicator run` by itself brings an old copy up to date; else move the file away first",
            )
        if schemas:  # an empty file that a refused start has made: its declarations were never used
            session.execute("delete from table_schemas")
        take_schemas(session, known)
    finally:
        session.close()
        database.close()

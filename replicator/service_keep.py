"""What keeps the ends small, as the service runs it: the trimming of Redis, the retention of the log, and the snapshots.

Guarantees: each is a loop of its own under the service's supervision; none of them runs without the lease.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import define

from replicator.database import Session
from replicator.retention import Limits, Retention
from replicator.snapshot import SnapshotMaker
from replicator.snapshot_files import SnapshotDirectory
from replicator.source_trim import StreamTrimming
from replicator.status import RetentionStatus, SnapshotStatus, TrimStatus
from replicator.status_file import read_last_verify
from replicator.trim import Trim, Trimmer

if TYPE_CHECKING:
    from replicator.service import Service


@define(kw_only=True)
class Keeping:
    """The parts. Build it with `Keeping.of`."""

    service: Service
    trimmer: Trimmer
    retention: Retention
    snapshots: SnapshotMaker
    snapshot_error: str | None = None

    @classmethod
    def of(cls, service: Service) -> Keeping:
        return cls(
            service=service, trimmer=_trimmer(service), retention=_retention(service), snapshots=_snapshots(service)
        )

    def trim_status(self) -> TrimStatus:
        trimmer = self.trimmer
        return TrimStatus(mode=str(trimmer.mode), entries=trimmer.entries_trimmed, held_by=trimmer.held_by)

    def retention_status(self) -> RetentionStatus:
        kept = self.retention
        return RetentionStatus(
            max_age_days=kept.limits.age_days,
            max_bytes=kept.limits.bytes,
            changes_deleted=kept.changes_deleted,
            bytes_used=kept.bytes_used,
            waits_for=kept.waits_for,
        )

    def snapshot_status(self) -> SnapshotStatus:
        newest = next(iter(published := self.snapshots.directory.published()), None)
        age = None if newest is None else max(0.0, time.time() - newest.taken_at.timestamp())
        path = None if newest is None else str(newest.path)
        return SnapshotStatus(newest=path, age_seconds=age, kept=len(published), error=self.snapshot_error)

    def start(self) -> None:
        """Start what is configured."""
        if self.trimmer.mode is not Trim.NEVER:
            self.service.supervise("trim", self.trimmer.run)
        if self.retention.limits.is_on:
            self.service.supervise("retention", self.retention.run)


def _trimmer(service: Service) -> Trimmer:
    return Trimmer(
        mode=Trim(service.settings.redis.trim),
        source=StreamTrimming(service.source),
        changelog=service.changelog,
        streams=lambda: service.catalog.routes.streams,
        stop=service.stop,
        failed_table=service.ledger.failed_table,
        may_trim=service.ownership.check,
    )


def _retention(service: Service) -> Retention:
    limits, upkeep = service.settings.retention, service.upkeep

    def want_folded(through: int) -> None:
        upkeep.wanted_through = max(upkeep.wanted_through, through)

    return Retention(
        limits=Limits(age_days=limits.max_age_days, bytes=limits.max_bytes),
        changelog=service.changelog,
        catalog=service.catalog,
        source=service.source,
        stop=service.stop,
        failed_table=service.ledger.failed_table,
        verified=lambda session: _verified(service, session),
        want_folded=want_folded,
        may_delete=service.ownership.check,
    )


def _verified(service: Service, session: Session) -> dict[str, int] | None:
    """How far each lane was found equal, where comparisons are scheduled."""
    return dict(read_last_verify(session).get("through", {})) if service.settings.verify.interval_sec else None


def _snapshots(service: Service) -> SnapshotMaker:
    settings = service.settings
    directory = SnapshotDirectory(path=settings.snapshots.directory.resolve(), pipeline=settings.pipeline.name)
    return SnapshotMaker(
        changelog=service.changelog,
        catalog=service.catalog,
        directory=directory,
        pipeline=settings.pipeline.name,
        free_bytes_min=settings.retention.min_free_bytes,
    )

"""What keeps the ends small, as the service runs it: the trimming of Redis.

Guarantees: each is a loop of its own under the service's supervision; none of them runs without the lease.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

from replicator.source_trim import StreamTrimming
from replicator.status import TrimStatus
from replicator.trim import Trim, Trimmer

if TYPE_CHECKING:
    from replicator.service import Service


@define(kw_only=True)
class Keeping:
    """The parts. Build it with `Keeping.of`."""

    service: Service
    trimmer: Trimmer

    @classmethod
    def of(cls, service: Service) -> Keeping:
        return cls(service=service, trimmer=_trimmer(service))

    def trim_status(self) -> TrimStatus:
        trimmer = self.trimmer
        return TrimStatus(mode=str(trimmer.mode), entries=trimmer.entries_trimmed, held_by=trimmer.held_by)

    def start(self) -> None:
        """Start what is configured."""
        if self.trimmer.mode is not Trim.NEVER:
            self.service.supervise("trim", self.trimmer.run)


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

"""The service's parts for one command while no service runs: the file is opened, delivery goes on, all is closed again.

Guarantees: the pipeline is claimed as the service claims it, so that two never work on one file or on copies of it;
nothing is read from Redis.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from replicator.config import Settings
from replicator.errors import SourceUnavailable
from replicator.operations import Operations
from replicator.service import Service


@contextmanager
def alone(settings: Settings, *, logging: bool = False) -> Iterator[Operations]:
    """The verbs that need delivery and, if ``logging``, those that log what was rejected.

    Without Redis delivery goes on, as while the service runs; logging needs the lease: raises SourceUnavailable.
    """
    service = Service.build(settings)
    try:
        try:
            service.ownership.acquire(service.stop)
        except SourceUnavailable:
            if logging:
                raise
        service.reconciler.check_log()
        service.progress.release(service.changelog.head)
        service.supervise("ownership", lambda: service.ownership.run(service.stop))
        service.supervise("deliver", service.deliver_all)
        if logging:
            service.capture.paused = lambda: True
            service.supervise("capture", service.capture.run)
        yield Operations(
            database=service.database,
            controls=service.controls,
            ledger=service.ledger,
            deliver=service.deliver,
            capture=service.capture if logging else None,
        )
    finally:
        service.shut_down()


def sync_once(
    settings: Settings, *, actor: str, timeout_seconds: float, batch_rows_max: int | None = None
) -> dict[str, Any]:
    """Deliver what the file holds without a service: opens it, delivers up to its head, closes it."""
    with alone(settings) as operations:
        return operations.sync(actor=actor, timeout_seconds=timeout_seconds, batch_rows_max=batch_rows_max)

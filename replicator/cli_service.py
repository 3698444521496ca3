"""The service's parts in a command's own process, for when no service runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from replicator.config import Settings
from replicator.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from replicator.service import Service


@contextmanager
def opened_service(settings: Settings, *, owned: bool, kept: Sequence[str] = ()) -> Iterator[Service]:
    """The service's parts without its loops; ``owned``: with the pipeline claimed, so that it may write.

    Tables in ``kept`` are taken as the file has them, whatever is configured.
    """
    from replicator.service import Service  # noqa: PLC0415 - loads everything

    path = settings.writer.database.path
    if not path.exists():
        raise DatabaseUnavailable(f"there is no database at {path} yet", hint="the first `replicator run` makes it")
    service = Service.build(settings, kept)
    try:
        if owned:
            service.ownership.acquire(service.stop)
        yield service
    finally:
        service.shut_down()

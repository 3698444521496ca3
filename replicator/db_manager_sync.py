"""``sync_to_clickhouse()``: have what is waiting delivered now, and wait for it along the profile's own ladder.

Guarantees: delivers nothing itself while a service runs; the report says what ClickHouse has, never more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import frozen

from replicator.client import Client, ServiceUnavailable, local_actor
from replicator.config import Profile
from replicator.errors import SinkUnavailable

ANSWER_SECONDS = 20.0
LOOK_SECONDS_MAX = 600.0
"""So long the service lets one request wait."""


@frozen(kw_only=True)
class SyncReport:
    """``delivered``: whether ClickHouse has all that was logged when it was asked for, but for rows it refuses."""

    delivered: bool
    head_offset: int
    from_offset: int
    checkpoint_offset: int
    parked_rows: int
    waits_for: str | None
    seconds: float
    looks: int
    through: str
    """``service``, or ``file`` where the manager delivered by itself."""

    def __bool__(self) -> bool:
        return self.delivered


def sync_along_ladder(profile: Profile, look: Callable[[float, int], dict[str, Any]]) -> SyncReport:
    """Look, and so often as the profile retries wait and look again. ``look(seconds, batch_rows)`` may wait that long.

    Raises SinkUnavailable or ServiceUnavailable when the last look found nobody to ask.
    """
    waits = waits_of(profile) or [0.0]
    started, first_offset = time.monotonic(), None
    for place, wait in enumerate(waits, start=1):
        try:
            found = look(min(wait, LOOK_SECONDS_MAX), profile.sync.batch_size)
        except (SinkUnavailable, ServiceUnavailable):
            if place == len(waits):
                raise
            time.sleep(wait)
            continue
        first_offset = found["from_offset"] if first_offset is None else first_offset
        if found["delivered"] or place == len(waits):
            break
    return report_of({**found, "from_offset": first_offset}, started, looks=place, through="service")


def report_of(found: dict[str, Any], started: float, *, looks: int, through: str) -> SyncReport:
    """What the last look found."""
    names = ("delivered", "head_offset", "from_offset", "checkpoint_offset", "parked_rows", "waits_for")
    seconds = round(time.monotonic() - started, 3)
    return SyncReport(**{name: found[name] for name in names}, seconds=seconds, looks=looks, through=through)


def waits_of(profile: Profile) -> list[float]:
    """The seconds before each retry of the profile, the last of its ladder repeating."""
    ladder = profile.error_handling.retry_backoff_sec
    return [ladder[min(place, len(ladder) - 1)] for place in range(profile.sync.max_retry_attempts)]


def ask_service(client: Client, seconds: float, batch_rows: int) -> dict[str, Any]:
    """One look through the running service; it answers as soon as everything is delivered."""
    body = {"timeout_seconds": seconds, "batch_rows_max": batch_rows}
    answer: dict[str, Any] = client.post("/api/v1/sync", body, timeout_seconds=seconds + ANSWER_SECONDS)
    return answer


def actor() -> str:
    """Who asks, for the record."""
    return local_actor().replace("cli:", "manager:", 1)

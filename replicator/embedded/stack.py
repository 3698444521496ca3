"""Both embedded engines under one directory: what ``replicator stack``, the demo and the tests run on.

Guarantees that both answer once it is entered and that both stop with it. It must never leave one running when the
other fails to start.
"""

from __future__ import annotations

import secrets
import signal
import sys
import threading
from pathlib import Path
from typing import Self

from attrs import define, field, frozen

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Fsync, Valkey


@frozen(kw_only=True)
class StackEndpoints:
    """Where the engines answer, and as whom."""

    redis_url: str = field(repr=False)
    clickhouse_endpoint: str
    user: str
    password: str = field(repr=False)


@define(kw_only=True)
class Stack:
    """Redis and ClickHouse under ``directory``, on the given ports or on free ones.

    ClickHouse gets a password even when none is given: who may query chDB may read every file its owner may.
    """

    directory: Path = field(converter=Path)
    redis_port: int | None = None
    clickhouse_port: int | None = None
    redis_password: str | None = field(default=None, repr=False)
    user: str = "default"
    password: str = field(factory=lambda: secrets.token_urlsafe(16), repr=False)
    fsync: Fsync = "everysec"
    redis: Valkey = field(init=False)
    clickhouse: ClickHouse = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.redis = Valkey(
            directory=self.directory / "redis", port=self.redis_port, password=self.redis_password, fsync=self.fsync
        )
        self.clickhouse = ClickHouse(
            directory=self.directory / "clickhouse", port=self.clickhouse_port, user=self.user, password=self.password
        )

    @property
    def endpoints(self) -> StackEndpoints:
        """What a client needs; complete once the stack has started."""
        return StackEndpoints(
            redis_url=self.redis.url,
            clickhouse_endpoint=self.clickhouse.endpoint,
            user=self.user,
            password=self.password,
        )

    def start(self) -> Self:
        """Start both, or neither."""
        try:
            self.redis.start()
            self.clickhouse.start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop both in order."""
        try:
            self.clickhouse.stop()
        finally:
            self.redis.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def run_stack(stack: Stack) -> None:
    """Start the stack, print where it answers, and wait for SIGINT or SIGTERM."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stack:
            endpoints = stack.endpoints
            lines = [
                f"REDIS_URL={endpoints.redis_url}",
                f"CLICKHOUSE_ENDPOINT={endpoints.clickhouse_endpoint}",
                f"CLICKHOUSE_USER={endpoints.user}",
                f"CLICKHOUSE_PASSWORD={endpoints.password}",
            ]
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()
            asked.wait()
    finally:
        for number, action in before.items():
            signal.signal(number, action)

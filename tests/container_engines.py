"""Redis and ClickHouse from real images, with the ways of the embedded ones: the same tests run on either.

Named by TEST_REDIS_IMAGE and TEST_CLICKHOUSE_IMAGE. Nothing started here outlives the test process's fixtures.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from typing import Any, Self

import docker
import redis
import urllib3
from attrs import define, field
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from replicator.embedded.claims import LOOPBACK, pick_port
from replicator.errors import ReplicatorError

testcontainers_config.ryuk_disabled = True
"""Its reaper is an image of its own, which may not be had where these are; the fixtures clean up themselves."""
START_SECONDS = 300.0


def absent(image: str) -> str:
    """Why an image cannot be run here; empty when it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # docker forgets its socket where nothing answers
        try:
            return _absent(image)
        finally:
            gc.collect()


def _absent(image: str) -> str:
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except docker.errors.DockerException as error:
        return f"no Docker engine answers: {error}"
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        try:
            client.images.pull(image)
        except docker.errors.APIError as error:
            return f"the image {image} is not here and cannot be pulled: {error.explanation}"
    finally:
        client.close()
    return ""


@define(kw_only=True)
class _Engine:
    image: str
    port: int = field(factory=lambda: pick_port(None, engine="test"))
    _container: DockerContainer | None = field(default=None, init=False)

    def _configured(self) -> DockerContainer:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _published(self, inner: int) -> DockerContainer:
        """Reached on loopback only; testcontainers' own way would open the port to the network."""
        container = DockerContainer(self.image, docker_client_kw={"timeout": int(START_SECONDS)})
        container.ports[f"{inner}/tcp"] = (LOOPBACK, self.port)
        return container

    @property
    def _wrapped(self) -> Any:
        assert self._container is not None
        return self._container.get_wrapped_container()

    @property
    def running(self) -> bool:
        if self._container is None:
            return False
        self._wrapped.reload()
        return bool(self._wrapped.status == "running")

    def start(self) -> Self:
        """Create or start the container, on the same port and data, and wait until it answers."""
        if self._container is None:
            self._container = self._configured().start()
        elif not self.running:
            self._wrapped.start()
        _until(self._answers, lambda: f"{self.image} does not answer:\n{self._wrapped.logs(tail=30).decode()}")
        return self

    def stop(self) -> None:
        if self.running:
            self._wrapped.stop(timeout=30)

    def kill(self) -> None:
        if self.running:
            self._wrapped.kill("SIGKILL")
            _until(lambda: not self.running, lambda: f"{self.image} does not die")

    def restart(self) -> Self:
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._container is not None:
            self._container.stop(force=True, delete_volume=True)


@define(kw_only=True)
class ContainerRedis(_Engine):
    """``valkey/valkey`` or ``redis``, with an append-only file."""

    password: str | None = None

    def _configured(self) -> DockerContainer:
        server = "valkey-server" if "valkey" in self.image else "redis-server"
        command = f"{server} --appendonly yes --appendfsync everysec --maxmemory-policy noeviction --protected-mode no"
        return self._published(6379).with_command(command)

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@define(kw_only=True)
class ContainerClickHouse(_Engine):
    """``clickhouse/clickhouse-server``."""

    user: str
    password: str

    def _configured(self) -> DockerContainer:
        container = self._published(8123)
        for name, value in {
            "CLICKHOUSE_USER": self.user,
            "CLICKHOUSE_PASSWORD": self.password,
            "CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT": "1",
        }.items():
            container = container.with_env(name, value)
        return container

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def _answers(self) -> bool:
        try:
            return self.execute("select 1").strip() == "1"
        except (ReplicatorError, urllib3.exceptions.HTTPError, OSError):
            return False

    def execute(self, statement: str) -> str:
        """Run one statement and return its output as text."""
        headers = {"X-ClickHouse-User": self.user, "X-ClickHouse-Key": self.password}
        answer = urllib3.request(
            "POST", self.endpoint, body=statement.encode(), headers=headers, retries=False, timeout=60
        )
        text = answer.data.decode(errors="replace")
        if answer.status != 200:
            raise ReplicatorError(f"ClickHouse refused: {text.strip()}", code=answer.status)
        return text


def _until(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(otherwise())
        time.sleep(0.1)

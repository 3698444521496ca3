"""One service, one browser; the tests look at the one through the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import redis
from browser_room import HOSTILE_STREAM, LONG_STREAM, READ_TOKEN, Page, start_chrome
from replicator_process import Replicator, free_port, running_alone

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SECTIONS = """
[serve]
port = {port}
[[tables]]
name = "trades"
key = ["trade_id"]
[tables.columns]
trade_id = "VARCHAR"
quantity = "BIGINT"
"""


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    chrome = start_chrome(BROWSER, DRIVER, tmp_path_factory.mktemp("profile"))
    try:
        yield Page(chrome)
    finally:
        chrome.quit()


@pytest.fixture(scope="module")
def service(
    page: Page, _valkey: Valkey, _clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicator]:
    """A service on a port of its own that survives its restart, with names that mean harm."""
    directory = tmp_path_factory.mktemp("service")
    with running_alone(
        directory,
        _valkey,
        _clickhouse,
        "test_page",
        environment={"REPLICATOR_READ_TOKEN": READ_TOKEN},
        streams=f'["trades", {_toml(HOSTILE_STREAM)}, "{LONG_STREAM}"]',
        sections=SECTIONS.format(port=free_port()),
    ) as replicator:
        yield replicator


def _toml(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08x}" if c in '"\\' or not c.isprintable() else c for c in text) + '"'


@pytest.fixture
def producer(_valkey: Valkey, service: Replicator) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(_valkey.url) as client:
        yield client


@pytest.fixture
def looking(page: Page, service: Replicator) -> Page:
    """Signed in, on a desktop, in light colours."""
    page.show_as()
    return page.open(service.url, READ_TOKEN)

"""A viewer that takes nothing is let go. The kernel's own buffers would take minutes to fill: here there are none."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from replicator import server_page
from replicator.page_feed import PageFeed
from replicator.server_page import LiveResponse


def test_a_viewer_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_page, "SEND_SECONDS", 0.05)
    feed = PageFeed(running=SimpleNamespace(service=SimpleNamespace(stop=threading.Event())))  # type: ignore[arg-type]
    cut: list[bool] = []
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def look() -> None:
        scope = {"type": "http", "state": {"abort": lambda: cut.append(True)}}
        await asyncio.wait_for(LiveResponse(feed, lambda: True)(scope, receive, send), 10)

    asyncio.run(look())
    assert cut == [True]
    assert sent == ["http.response.start", "http.response.body"]
    assert feed.viewers == 0

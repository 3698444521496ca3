"""The page's files and its stream, without a browser: who gets what, how many may look, and how a look ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import urllib3
from replicator_process import Replicator, running_alone, until

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey
from replicator.page_feed import VIEWERS_MAX
from replicator.server_page import page_files

POLICY = {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"}


@pytest.fixture(scope="module")
def service(_valkey: Valkey, _clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicator]:
    directory = tmp_path_factory.mktemp("service")
    with running_alone(directory, _valkey, _clickhouse, "test_server_page", sections="[serve]\nport = 0") as replicator:
        yield replicator


class Look:
    """One viewer's stream."""

    def __init__(self, service: Replicator, token: str | None = None) -> None:
        self.pool = urllib3.PoolManager(retries=False, timeout=60)
        token = token or service.database_path.with_name("replicator.duckdb.read_token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        self.answer = self.pool.request("GET", f"{service.url}/api/v1/live", headers=headers, preload_content=False)
        self.rest = b""

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self.pool.clear()

    def events(self) -> Iterator[tuple[str, object]]:
        for piece in self.answer.stream(1 << 16):
            *whole, self.rest = (self.rest + piece).split(b"\n\n")
            for event in whole:
                name, body = event.split(b"\n", 1)
                yield name.removeprefix(b"event: ").decode(), json.loads(body.removeprefix(b"data: "))


def test_the_files_are_open_and_hold_nothing_of_the_pipeline(service: Replicator) -> None:
    for path in ("/", *(f"/page/{name}" for name in page_files())):
        answer = service.http("GET", path, token=None)
        assert answer.status == 200, path
        assert {part.strip() for part in answer.headers["content-security-policy"].split(";")} >= POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert b"replicator.duckdb" not in answer.data
    assert service.http("GET", "/", token=None).headers["content-type"] == "text/html; charset=utf-8"
    assert service.http("GET", "/page/page.js", token=None).headers["content-type"].startswith("text/javascript")


def test_the_page_has_nothing_written_into_it_and_names_no_other_place() -> None:
    for name, (body, _) in page_files().items():
        text = body.decode()
        assert "http://" not in text.replace("http://www.w3.org/", "").replace("http://127.0.0.1", ""), name
        if name.endswith(".html"):
            assert " style=" not in text and " onclick" not in text and "<style" not in text
        if name.endswith(".js") and name != "uPlot.js":
            assert "innerHTML" not in text and "eval(" not in text


@pytest.mark.parametrize(
    "path", ["/page/", "/page/README.md", "/page/vendor/uPlot.js", "/page/..%2fserver.py", "/page/%2e%2e/server.py", "/page/none.js"]
)  # fmt: skip
def test_no_other_file_is_served(service: Replicator, path: str) -> None:
    assert service.http("GET", path, token=None).status == 404


def test_a_link_from_anywhere_opens_the_page_and_nothing_else(service: Replicator) -> None:
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert service.http("GET", "/", token=None, **followed).status == 200
    assert service.http("GET", "/api/v1/status", token="read", **followed).status == 403
    assert service.http("GET", "/", token=None, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors").status == 403
    assert service.http("POST", "/", token=None, **followed).status == 403


@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_looking_takes_a_token(service: Replicator, token: str | None) -> None:
    answer = service.http("GET", "/api/v1/live", token=token)
    assert answer.status == 401
    assert answer.json()["error"]["kind"] == "unauthorized"


def test_a_look_begins_with_the_hour_and_goes_on_with_frames(service: Replicator) -> None:
    with Look(service) as look:
        assert look.answer.headers["content-type"].startswith("text/event-stream")
        events = look.events()
        name, points = next(events)
        assert name == "hour" and isinstance(points, list)
        frames = (body for name, body in events if name == "frame")
        frame = next(frames)
        assert isinstance(frame, dict)
        status = service.status()
        assert frame.keys() >= status.keys() - {"sync_interval_seconds"}
        assert frame["pipeline"] == "main"
        assert frame["command"].endswith(str(service.config_dir))
        assert len({len(column) for column in frame["tables"].values()}) == 1
        later = next(frames)
        assert isinstance(later, dict) and later["at"] > frame["at"]


def test_only_so_many_may_look_and_who_leaves_makes_room(service: Replicator) -> None:
    with ExitStack() as stack:
        looks: list[Look] = []

        def another() -> bool:
            look = Look(service)
            if look.answer.status == 200:
                looks.append(stack.enter_context(look))
            return look.answer.status == 200

        for _ in range(VIEWERS_MAX):
            until(another, "who looked before has left")
        refused = service.http("GET", "/api/v1/live", token="read")
        assert (refused.status, refused.json()["error"]["kind"]) == (503, "unavailable")
        assert refused.headers["retry-after"] == "10"
        looks[0].__exit__()

        until(another, "there is room again")
    assert service.status()["state"] == "ok"


def test_a_token_that_is_taken_back_ends_the_look(service: Replicator) -> None:
    service.write("secrets.toml", '[serve]\nread_token = "first-token-first-token-1"\n')
    service.signal(signal.SIGHUP)
    until(lambda: service.http("GET", "/api/v1/status", token="first-token-first-token-1").status == 200, "it is taken")
    with Look(service, "first-token-first-token-1") as look:
        events = look.events()
        assert next(events)[0] == "hour"
        service.write("secrets.toml", '[serve]\nread_token = "second-token-second-token"\n')
        service.signal(signal.SIGHUP)
        assert [event for event in events if event[0] == "end"] == [("end", "token")]


def test_the_stream_is_described(service: Replicator) -> None:
    described = service.http("GET", "/api/v1/openapi.json", token=None).json()["paths"]
    assert "text/event-stream" in described["/api/v1/live"]["get"]["responses"]["200"]["content"]
    assert described["/api/v1/live"]["get"]["security"]
    assert "/" not in described

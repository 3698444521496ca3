"""The HTTP interface of a running service: who may, what is refused and how, and that nothing moves the service."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from replicator_process import Replicator, running_alone, until

from replicator.embedded.clickhouse import ClickHouse
from replicator.embedded.valkey import Valkey

READS = ("/api/v1/status", "/api/v1/failed", "/api/v1/rejected", "/api/v1/gaps", "/api/v1/actions")
CHANGES = {
    "/api/v1/sync": {},
    "/api/v1/pause": {"subject": "capture"},
    "/api/v1/resume": {"subject": "capture"},
    "/api/v1/failed/retry": {"all": True},
    "/api/v1/failed/discard": {"all": True, "reason": "test"},
    "/api/v1/rejected/retry": {"all": True},
    "/api/v1/rejected/discard": {"all": True, "reason": "test"},
    "/api/v1/gaps/ack": {"all": True},
}
SECTIONS = '[serve]\nport = 0\n[telemetry]\notlp_endpoint = "http://127.0.0.1:9"'
"""Nobody listens there: a collector that is away moves the service as little as its callers do."""
ERROR_FIELDS = {"kind", "message", "hint"}


@pytest.fixture(scope="module")
def service(_valkey: Valkey, _clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicator]:
    """One service for all of these tests: none of them may move it."""
    directory = tmp_path_factory.mktemp("service")
    with running_alone(directory, _valkey, _clickhouse, "test_server", sections=SECTIONS) as replicator:
        replicator.until_status(lambda r: r["sink"]["circuit"], "delivery has begun")
        yield replicator


def refused(answer: object, status: int, kind: str) -> None:
    assert answer.status == status, answer.data  # type: ignore[attr-defined]
    error = answer.json()["error"]  # type: ignore[attr-defined]
    assert error.keys() == ERROR_FIELDS
    assert error["kind"] == kind
    assert error["message"]


# ── who may ──


@pytest.mark.parametrize("path", READS)
def test_reading_takes_either_token(service: Replicator, path: str) -> None:
    assert service.http("GET", path, token="read").status == 200
    assert service.http("GET", path, token="admin").status == 200


@pytest.mark.parametrize("path", CHANGES)
def test_changing_takes_the_admin_token(service: Replicator, path: str) -> None:
    refused(service.http("POST", path, token="read", body=CHANGES[path]), 403, "forbidden")
    assert service.http("POST", path, token="admin", body=CHANGES[path]).status == 200


@pytest.mark.parametrize(
    "token", [None, "", "wrong", "é", "x" * 9000], ids=["none", "empty", "wrong", "not-ascii", "long"]
)
@pytest.mark.parametrize("path", [*READS, *CHANGES])
def test_without_a_known_token_nothing_is_said_or_done(service: Replicator, path: str, token: str | None) -> None:
    token = token if token is None else token.encode().decode("latin-1")
    answer = service.http("POST" if path in CHANGES else "GET", path, token=token, body=CHANGES.get(path))
    refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_in_the_address_is_no_token(service: Replicator) -> None:
    token = service.database_path.with_name("replicator.duckdb.admin_token").read_text().strip()
    refused(service.http("GET", f"/api/v1/status?token={token}", token=None), 401, "unauthorized")


def test_health_and_metrics_need_none_on_loopback(service: Replicator) -> None:
    live = service.http("GET", "/livez", token=None)
    assert (live.status, live.json()["service"]) == (200, "replicator")
    ready = until(lambda: (a := service.http("GET", "/readyz", token=None)).status == 200 and a, "it is ready")
    assert ready.json().keys() == {"state", "reasons"}
    assert service.http("GET", "/metrics", token=None).status == 200


# ── what is refused ──


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff\xfe", b"[]", b'"x"', b"null", b"NaN", b'{"unknown": 1}', b"[" * 100_000, b'{"ids": [1e999]}'],
    ids=["cut", "bytes", "array", "string", "null", "nan", "unknown", "deep", "infinite"],
)
def test_malformed_bodies_are_refused(service: Replicator, path: str, body: bytes) -> None:
    answer = service.http("POST", path, body=body)
    assert 400 <= answer.status < 500, (answer.status, answer.data)
    assert answer.json()["error"].keys() == ERROR_FIELDS


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/sync", {"timeout_seconds": "5"}),
        ("/api/v1/sync", {"timeout_seconds": 1e9}),
        ("/api/v1/pause", {"subject": ""}),
        ("/api/v1/pause", {"subject": 7}),
        ("/api/v1/failed/retry", {"ids": [0]}),
        ("/api/v1/failed/retry", {"ids": [2**63]}),
        ("/api/v1/failed/retry", {"ids": ["1"]}),
        ("/api/v1/failed/discard", {"all": True}),
        ("/api/v1/gaps/ack", {"older_than_seconds": -1}),
    ],
)
def test_values_of_the_wrong_kind_are_refused(service: Replicator, path: str, body: dict[str, object]) -> None:
    refused(service.http("POST", path, body=body), 422, "malformed")


def test_requests_that_make_no_sense_say_why(service: Replicator) -> None:
    refused(service.http("POST", "/api/v1/pause", body={"subject": "no'such\"table"}), 400, "usage_error")
    refused(service.http("POST", "/api/v1/failed/retry", body={}), 400, "usage_error")
    refused(service.http("POST", "/api/v1/failed/discard", body={"all": True, "reason": "  "}), 400, "usage_error")
    refused(service.http("POST", "/api/v1/failed/retry", body={"ids": [999]}), 404, "not_found")
    for path in ("/api/v1/failed/999", "/api/v1/rejected/999"):
        refused(service.http("GET", path), 404, "not_found")
    refused(service.http("GET", "/api/v1/failed?limit=0"), 422, "malformed")
    refused(service.http("GET", "/api/v1/failed?status=lost"), 422, "malformed")
    refused(service.http("GET", "/api/v1/failed?tabel=trades"), 422, "malformed")


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_an_oversized_body_is_refused(service: Replicator, chunked: bool) -> None:
    token = service.database_path.with_name("replicator.duckdb.admin_token").read_text().strip()
    size = 3 << 20
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    head = b"POST /api/v1/sync HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n" % token.encode()
    piece = b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16)) if chunked else b" " * (1 << 16)
    with connected(service) as link:
        link.sendall(head + b"Content-Type: application/json\r\n" + framing + b"\r\n\r\n")
        try:
            for _ in range(size >> 16):
                link.sendall(piece)
        except OSError:
            pass  # it has answered and hung up before all was sent
        answer = b""
        while b"}" not in answer and (piece := link.recv(65536)):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
    assert b'"too_large"' in answer


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_refused(service: Replicator, method: str) -> None:
    assert service.http(method, "/api/v1/status").status == 405
    refused(service.http("GET", "/api/v1/sync"), 405, "wrong_method")


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/v1/../../secrets.toml", "/api/v1/failed/..%2f..%2fx",
     "//etc/passwd", "/config/secrets.toml", "/replicator.duckdb.admin_token", "/api/v1/failed/%00"],
)  # fmt: skip
def test_paths_lead_nowhere_but_to_the_interface(service: Replicator, path: str) -> None:
    answer = raw(service, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] in (b"404", b"401", b"422"), answer[:200]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "10.0.0.1:80"])
def test_a_name_that_is_rebound_to_this_machine_is_refused(service: Replicator, host: str) -> None:
    refused(service.http("GET", "/api/v1/status", Host=host), 421, "wrong_host")


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Sec_Fetch_Site": "cross-site"}],
    ids=str,
)  # fmt: skip
def test_calls_from_pages_of_other_origins_are_refused(service: Replicator, headers: dict[str, str]) -> None:
    refused(service.http("POST", "/api/v1/pause", body={"subject": "capture"}, **headers), 403, "cross_origin")
    assert "capture" not in service.status()["paused"]
    own = service.url
    assert service.http("GET", "/api/v1/status", Origin=own).status == 200


# ── connections ──


def connected(service: Replicator) -> socket.socket:
    host, _, port = service.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def raw(service: Replicator, request: bytes) -> bytes:
    with connected(service) as link:
        link.sendall(request)
        received = b""
        while piece := link.recv(65536):
            received += piece
        return received


@pytest.mark.parametrize(
    "request_bytes", [b"\x16\x03\x01\x02\x00hello", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100_000],
    ids=["tls", "no-version", "future", "zeros"],
)  # fmt: skip
def test_what_is_not_http_is_answered_and_closed(service: Replicator, request_bytes: bytes) -> None:
    try:
        answer = raw(service, request_bytes)
    except ConnectionResetError:
        answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_a_crowd_of_idle_connections_leaves_room_for_the_operator(service: Replicator) -> None:
    crowd = [connected(service) for _ in range(600)]
    try:
        until(lambda: _descriptors(service) < 400, "what is beyond the limit is closed, long before it is idle", 6)
        until(lambda: service.command("status", "--json").code == 0, "a command gets through in the end")
    finally:
        for link in crowd:
            link.close()
    service.until_status(lambda r: r["state"] == "ok", "the service is unmoved")


def _descriptors(service: Replicator) -> int:
    metrics = {f.name: f for f in text_string_to_metric_families(service.http("GET", "/metrics").data.decode())}
    return int(metrics["process_open_fds"].samples[0].value)


# ── what it says ──


def test_the_interface_describes_itself(service: Replicator) -> None:
    described = service.http("GET", "/api/v1/openapi.json", token=None).json()
    assert {*READS, *CHANGES, "/livez", "/readyz", "/metrics"} <= described["paths"].keys()
    sync = described["paths"]["/api/v1/sync"]["post"]
    assert sync["security"]
    assert {"401", "403", "422", "503"} <= sync["responses"].keys()


def test_metrics_parse_and_carry_no_unknown_as_zero(service: Replicator) -> None:
    until(lambda: b"replicator_sink_confirmed_offset" in service.http("GET", "/metrics").data, "a first report")
    families = {f.name: f for f in text_string_to_metric_families(service.http("GET", "/metrics").data.decode())}
    for name in ("replicator_events_ingested", "replicator_lag_seconds", "replicator_lag_events",
                 "replicator_checkpoint_offset", "replicator_failed_syncs_open", "replicator_loop_heartbeat_age_seconds",
                 "replicator_status", "process_resident_memory_bytes"):  # fmt: skip
        assert name in families, name
        assert families[name].documentation
    assert "replicator_failed_syncs_oldest_age_seconds" not in families
    assert "replicator_reconcile_last_success_age_seconds" not in families


def test_answers_cannot_be_framed_sniffed_or_kept(service: Replicator) -> None:
    headers = service.http("GET", "/api/v1/status").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


def test_who_asked_is_on_record_and_cannot_forge_lines(service: Replicator) -> None:
    service.http("POST", "/api/v1/pause", body={"subject": "deliver"}, X_Replicator_Actor="ann<script>@desk")
    service.http("POST", "/api/v1/resume", body={"subject": "deliver"}, X_Replicator_Actor="bob")
    actions = service.http("GET", "/api/v1/actions?limit=2").json()
    assert [(a["actor"], a["action"], a["subject"], a["effect"]) for a in actions] == [
        ("bob", "resume", "deliver", "resumed"),
        ("annscript@desk", "pause", "deliver", "paused"),
    ]
    assert json.loads(json.dumps(actions)) == actions

"""The interface over TLS and on every address: tokens for all but health, and a client that trusts one certificate."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import urllib3
from replicator_process import Replicator

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make certificates with")
TOKENS = {"REPLICATOR_ADMIN_TOKEN": "a" * 24, "REPLICATOR_READ_TOKEN": "r" * 24}


def certificate(directory: Path, name: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=replicator.example", "-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem"],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture
def secured(replicator: Replicator) -> Replicator:
    """On every address, as the configuration demands it: with TLS and both tokens."""
    certificate(replicator.config_dir, "server")
    replicator.environment |= TOKENS
    replicator.configure(
        sections='[serve]\nhost = "0.0.0.0"\nport = 0\ntls_cert = "config/server.pem"\ntls_key = "config/server.key"'
    )
    return replicator.start()


def call(replicator: Replicator, path: str, token: str | None = None, **headers: str) -> urllib3.BaseHTTPResponse:
    context = ssl.create_default_context(cafile=replicator.config_dir / "server.pem")
    context.check_hostname = False
    sent = {**headers, **({"Authorization": f"Bearer {token}"} if token else {})}
    with urllib3.PoolManager(retries=False, ssl_context=context, assert_hostname=False) as pool:
        return pool.request("GET", replicator.url.replace("0.0.0.0", "127.0.0.1") + path, headers=sent, timeout=20)


def test_health_is_open_and_everything_else_asks_for_a_token(secured: Replicator) -> None:
    assert call(secured, "/livez", Host="replicator.example").status == 200
    for path in ("/metrics", "/api/v1/status"):
        assert call(secured, path).status == 401
        assert call(secured, path, TOKENS["REPLICATOR_READ_TOKEN"]).status == 200
    assert secured.url.startswith("https://0.0.0.0:")


def test_commands_trust_exactly_the_configured_certificate(secured: Replicator) -> None:
    assert secured.command("status", "--json").code == 0
    assert secured.command("sync").code == 0
    certificate(secured.config_dir, "server")
    refused = secured.command("sync")
    assert refused.code == 3
    assert "certificate" in refused.err.lower()
    assert TOKENS["REPLICATOR_ADMIN_TOKEN"] not in refused.err


def test_plain_http_is_not_answered(secured: Replicator) -> None:
    plain = secured.url.replace("https://0.0.0.0", "http://127.0.0.1")
    with pytest.raises(urllib3.exceptions.HTTPError):
        urllib3.request("GET", f"{plain}/livez", retries=False, timeout=10)

"""Secrets brought to where they are used, and the rules about them: placeholders, contradictions, who may listen.

Never shows a secret: problems and warnings name its place only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import evolve

from replicator.config.checks import host_of, is_loopback, shown
from replicator.config.layers import PIPELINE_FILE, SECRETS_FILE, Document
from replicator.config.resolve import Resolver
from replicator.config.values import ClickHouse, Profile, Redis, Serve

PLACEHOLDERS = frozenset({"your-secure-password", "YOUR-ENCRYPTION-KEY-HERE"})
"""What the reference document's secrets.toml holds in place of secrets, and so does our example."""

PLACEHOLDER_USER = "admin"


def _real(resolver: Resolver, section: str, key: str, value: str, *, remote: str = "") -> str:
    """The secret, or nothing where it is only a placeholder: warned of, and refused beside a remote server."""
    if value not in PLACEHOLDERS:
        return value
    place = f"{SECRETS_FILE} [{section}] {key} ({resolver.sources.get((SECRETS_FILE, section, key), 'default')})"
    if remote:
        resolver.findings.problems.append(
            f"{place}: still holds the example's placeholder while the server is remote ({remote}); "
            "write the real secret, or remove the key"
        )
    else:
        resolver.warn(f"{place}: holds the example's placeholder and counts as unset")
    return ""


def _remote(url: str) -> str:
    host = host_of(url)
    return "" if not host or is_loopback(host) else host


def with_clickhouse_login(
    resolver: Resolver, clickhouse: ClickHouse, secrets: Mapping[str, Any], writer: Profile, reader: Profile
) -> ClickHouse:
    """The ClickHouse section with the service's endpoint, and user and password where they are real."""
    endpoint = writer.sync.clickhouse_endpoint
    remote = _remote(endpoint) or _remote(reader.sync.clickhouse_endpoint)
    auth = secrets["auth"]
    password = _real(resolver, "auth", "clickhouse_password", auth.clickhouse_password, remote=remote)
    user = auth.clickhouse_user
    if user == PLACEHOLDER_USER and auth.clickhouse_password and not password:
        user = ""  # the example's user goes with the example's password
    master_key = _real(resolver, "encryption", "master_key", secrets["encryption"].master_key, remote=remote)
    if master_key:
        resolver.findings.problems.append(
            f"{SECRETS_FILE} [encryption] master_key: cannot be honoured: DuckDB writes encrypted files only through "
            "an extension that is not part of this product; remove the key and encrypt the disk instead"
        )
    if clickhouse.ca_cert and urlsplit(endpoint).scheme == "http":
        resolver.clash(
            f"{PIPELINE_FILE} [clickhouse] ca_cert = {shown(str(clickhouse.ca_cert))} contradicts the endpoint "
            f"{shown(endpoint)}, which is not encrypted; write https:// there, or remove ca_cert",
            (PIPELINE_FILE, "clickhouse", "ca_cert"),
        )
    if password and _remote(endpoint) and urlsplit(endpoint).scheme == "http":
        resolver.warn(f"the ClickHouse password travels unencrypted to {shown(endpoint)}; use https://")
    return evolve(clickhouse, endpoint=endpoint, user=user or "default", password=password)


def with_redis_login(resolver: Resolver, redis: Redis, secrets: Mapping[str, Any]) -> Redis:
    """The Redis section with its credentials apart from its URL, whichever way they were given."""
    parts = urlsplit(redis.url)
    bare = redis.url.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)
    url_source = resolver.sources.get((PIPELINE_FILE, "redis", "url"), "default")
    found = {}
    for key, in_url in (("username", unquote(parts.username or "")), ("password", unquote(parts.password or ""))):
        apart = _real(resolver, "redis", key, getattr(secrets["redis"], key), remote=_remote(bare))
        source = (SECRETS_FILE, "redis", key)
        if in_url and apart and in_url != apart:
            resolver.findings.problems.append(
                f"the Redis {key} in the URL ({url_source}) contradicts {SECRETS_FILE} [redis] {key} "
                f"({resolver.sources.get(source, 'default')}); keep one of the two"
            )
        if in_url and key == "password" and url_source == "file":
            resolver.warn(f"{PIPELINE_FILE} [redis] url: holds a password; move it to {SECRETS_FILE} [redis]")
        if in_url:
            resolver.sources[source] = url_source
        found[key] = in_url or apart or None
    if found["password"] and parts.scheme == "redis" and _remote(bare):
        resolver.warn(f"the Redis password travels unencrypted to {shown(bare)}; use rediss://")
    return evolve(redis, url=bare, **found)


def with_tokens(resolver: Resolver, serve: Serve, secrets: Mapping[str, Any]) -> Serve:
    tokens = secrets["serve"]
    admin = _real(resolver, "serve", "admin_token", tokens.admin_token)
    read = _real(resolver, "serve", "read_token", tokens.read_token)
    if admin and admin == read:
        resolver.findings.problems.append(
            f"{SECRETS_FILE} [serve] read_token: is the same as admin_token, so every reader could administer; "
            "choose another"
        )
    return evolve(serve, admin_token=admin or None, read_token=read or None)


def check_serve(resolver: Resolver, document: Document, serve: Serve) -> None:
    """A certificate has its key; anything but loopback has both, and both tokens."""
    place = f"{document.path} [serve]"
    certificate_keys = ((PIPELINE_FILE, "serve", "tls_cert"), (PIPELINE_FILE, "serve", "tls_key"))
    if (serve.tls_cert is None) != (serve.tls_key is None):
        given, absent = ("tls_cert", "tls_key") if serve.tls_cert else ("tls_key", "tls_cert")
        resolver.clash(
            f"{place} {given} = {shown(str(getattr(serve, given)))}: is given without {absent}; give both or neither",
            *certificate_keys,
        )
    if is_loopback(serve.host):
        return
    wanted = (
        ("tls_cert", serve.tls_cert),
        ("tls_key", serve.tls_key),
        ("admin_token (secrets.toml)", serve.admin_token),
        ("read_token (secrets.toml)", serve.read_token),
    )
    if missing := [name for name, value in wanted if not value]:
        resolver.clash(
            f"{place} host = {shown(serve.host)}: is not loopback, so TLS and both tokens are needed; "
            f"set {', '.join(missing)}, or write 127.0.0.1",
            (PIPELINE_FILE, "serve", "host"),
            (SECRETS_FILE, "serve", "admin_token"),
            (SECRETS_FILE, "serve", "read_token"),
            *certificate_keys,
        )

"""What `check` asks of Redis, ClickHouse and the file before anything is started, and what it says of the answers.

Guarantees: changes nothing anywhere, shows no secret, and reports each part even when another one is silent.
"""

from __future__ import annotations

import os
from typing import Any

from attrs import asdict, field, frozen

from replicator.client import connect
from replicator.config import Settings
from replicator.errors import ReplicatorError
from replicator.free_space import disk_free_bytes
from replicator.service import build_sink, build_source
from replicator.sink import quote

REDIS_VERSION_MIN = (6, 2)
REDIS_VERSION_COUNTS = (7, 0)
CLICKHOUSE_VERSION_MIN = (24, 8)
NEEDED_ON_TABLES = (
    "SELECT", "INSERT", "CREATE TABLE", "CREATE VIEW", "DROP TABLE", "DROP VIEW", "ALTER TABLE", "ALTER VIEW", "TRUNCATE",
)  # fmt: skip
NEEDED_IN_SYSTEM = ("processes", "tables", "columns", "parts", "query_log")


@frozen(kw_only=True)
class Finding:
    """One part: whether it can be worked with, in words; what will hurt; what to do when not."""

    part: str
    ok: bool
    text: str
    warnings: tuple[str, ...] = ()
    hint: str = ""
    facts: dict[str, Any] = field(factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect(settings: Settings) -> list[Finding]:
    """Every part, tried."""
    return [_redis(settings), _clickhouse(settings), _database(settings)]


def _failed(part: str, error: ReplicatorError) -> Finding:
    return Finding(part=part, ok=False, text=error.message, hint=error.hint)


def version_of(text: str) -> tuple[int, ...]:
    """``7.0.15-foo`` as something that compares."""
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in text.split(".")[:2])


# ── Redis ──


def _redis(settings: Settings) -> Finding:
    source = build_source(settings)
    try:
        about = source.ping()
        configured = source.settings("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
        streams = {stream: source.describe(stream) for stream in settings.redis.streams}
    except ReplicatorError as error:
        return _failed("Redis", error)
    finally:
        source.close()
    version = str(about.get("valkey_version") or about.get("redis_version") or "unknown")
    name = "Valkey" if about.get("valkey_version") else "Redis"
    missing = [stream for stream, found in streams.items() if not found.exists]
    notes = f", not there yet: {', '.join(missing)}" if missing else ""
    return Finding(
        part="Redis",
        ok=True,
        text=f"{name} {version} at {settings.redis.url}, {len(streams)} streams{notes}",
        warnings=tuple(redis_warnings(about, configured)),
        facts={"version": version, "streams_missing": missing},
    )


def redis_warnings(about: dict[str, Any], configured: dict[str, str]) -> list[str]:
    """What of a Redis server's ways will hurt somebody who relies on it."""
    warnings = []
    append_only = configured.get("appendonly") or ("yes" if about.get("aof_enabled") else "no")
    if append_only != "yes":
        warnings.append("it keeps no append-only file: a restart loses what was not read yet; set appendonly yes")
    elif configured.get("appendfsync") == "no":
        warnings.append("appendfsync is no: a power cut loses entries; set everysec or always")
    policy = configured.get("maxmemory-policy") or about.get("maxmemory_policy") or "noeviction"
    maximum = int(configured.get("maxmemory") or about.get("maxmemory") or 0)
    if maximum and policy != "noeviction":
        warnings.append(f"maxmemory-policy {policy} may evict whole streams before they are read; set noeviction")
    version = version_of(str(about.get("redis_version", "7.0")))
    if version < REDIS_VERSION_MIN:
        warnings.append(
            f"version {about.get('redis_version')} is older than {REDIS_VERSION_MIN[0]}.{REDIS_VERSION_MIN[1]}"
        )
    elif version < REDIS_VERSION_COUNTS:
        warnings.append("before 7.0 Redis does not count entries added: entries trimmed unread are noticed less surely")
    if about.get("role") in ("slave", "replica"):
        warnings.append("this is a replica: positions cannot be published there, and a failover may lose entries")
    return warnings


def redis_acl(settings: Settings) -> str:
    """The ACL rule of a user that may do exactly what the service does."""
    keys = " ".join(f"~{stream}" for stream in settings.redis.streams) or "~<your streams>"
    commands = "+@connection +multi +exec +discard +watch +unwatch +xread +xinfo +xgroup +xlen +xrange +xrevrange +get +set +del +pttl +info +config|get +time"
    trim = "" if settings.redis.trim == "never" else " +xtrim +xpending +eval"
    user = settings.redis.username or "replicator"
    return f"ACL SETUSER {user} on ><password> resetkeys {keys} ~replicator:{settings.pipeline.name}:* -@all {commands}{trim}"


# ── ClickHouse ──


def _clickhouse(settings: Settings) -> Finding:
    sink = build_sink(settings)
    try:
        version = _server_version(sink)
        warnings = _clickhouse_warnings(sink, settings, version)
    except ReplicatorError as error:
        return _failed("ClickHouse", error)
    finally:
        sink.close()
    c = settings.clickhouse
    return Finding(
        part="ClickHouse",
        ok=True,
        text=f"{version} at {c.endpoint}, database {c.database} as {c.user}",
        warnings=tuple(warnings),
        facts={"version": version},
    )


def _server_version(sink: Any) -> str:
    return str(sink.server().version)


def _clickhouse_warnings(sink: Any, settings: Settings, version: str) -> list[str]:
    warnings = []
    if version_of(version) < CLICKHOUSE_VERSION_MIN:
        wanted = ".".join(map(str, CLICKHOUSE_VERSION_MIN))
        warnings.append(f"version {version} is older than {wanted}, the oldest we know to keep our promises")
    if why := sink.why_not_exchanged():
        warnings.append(f"`replicator rebuild` is not possible: {why}")
    missing = [what for what in clickhouse_needs(settings) if not _granted(sink, what)]
    warnings += [f"missing grant: {what}" for what in missing]
    return warnings


def _granted(sink: Any, what: str) -> bool:
    """Whether the user has it; a server that cannot be asked that way is believed to have given it."""
    try:
        return bool(sink.scalar(f"check grant {what}"))
    except ReplicatorError as error:
        return error.code != 497


def clickhouse_needs(settings: Settings) -> list[str]:
    """Everything the user must be granted, as ``GRANT`` takes it."""
    database = quote(settings.clickhouse.database)
    ours = [f"{right} ON {database}.*" for right in NEEDED_ON_TABLES]
    return [*ours, f"CREATE DATABASE ON {database}.*", *(f"SELECT ON system.{name}" for name in NEEDED_IN_SYSTEM)]


def clickhouse_grants(settings: Settings) -> list[str]:
    """The statements that give it."""
    user = quote(settings.clickhouse.user)
    return [f"GRANT {what} TO {user}" for what in clickhouse_needs(settings)]


# ── the file ──


def _database(settings: Settings) -> Finding:
    path = settings.writer.database.path
    free = disk_free_bytes(path)
    warnings = []
    if free is not None and free < settings.retention.min_free_bytes:
        warnings.append(f"only {free >> 20} MB are free there, below [retention] min_free_bytes")
    facts = {"free_bytes": free}
    try:
        if service := connect(settings):  # raises where the holder is no service that answers
            text = f"{path} is in use by the service that runs at {service.url}"
        elif path.exists():
            text = _opened(settings)
        else:
            text = f"{path} does not exist yet: the first run makes it"
            _writable(settings)
    except ReplicatorError as error:
        return _failed("DuckDB", error)
    return Finding(part="DuckDB", ok=True, text=text, warnings=tuple(warnings), facts=facts)


def _opened(settings: Settings) -> str:
    from replicator.database import Database, DatabaseOptions  # noqa: PLC0415 - only where there is a file

    path = settings.writer.database.path
    database = Database.open(DatabaseOptions(path=path, read_only=True))
    try:
        session = database.session()
        row = session.row("select count(*) from duckdb_tables() where table_name = 'change_log'")
        what = "holds a change log" if row and row[0] else "holds no change log yet"
    finally:
        database.close()
    return f"{path} opens, {what}"


def _writable(settings: Settings) -> None:
    from replicator.errors import DatabaseUnavailable  # noqa: PLC0415

    path = settings.writer.database.path
    place = next(p for p in path.parents if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise DatabaseUnavailable(
            f"{path} cannot be made: {place} is not writable", hint="set [database] path or DUCKDB_PATH"
        )
